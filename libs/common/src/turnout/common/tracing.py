"""W3C Trace Context: which trace an event belongs to, and its own place there.

Source: w3.org/TR/trace-context, section 3.2. Ids are derived from the event's, as everything here is: an event that
is made twice has one span, not two.
"""

from __future__ import annotations

import re
from hashlib import blake2b

_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})(-.*)?"
)
SAMPLED = "01"
_HEX_ID = 32
# The last sixteen digits are a span's id, which must not be all zeros.
_HEX = re.compile(r"[0-9a-f]{16}(?!0{16})[0-9a-f]{16}")


def continued(traceparent: str | None, ident: str, *, correlation: str) -> str:
    """The `traceparent` of event `ident`: in the trace that `traceparent` names, else in one of the correlation's own.

    What is not a traceparent is passed over, as the standard has it.
    """
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if found is None:
        return f"00-{_digest(correlation, 16)}-{_digest(ident, 8)}-{SAMPLED}"
    return f"00-{found['trace']}-{_digest(ident, 8)}-{found['flags']}"


def _digest(text: str, size: int) -> str:
    """`size` bytes in hexadecimal that follow from an id: its own last ones where it is made of them, as a score's."""
    if len(text) == _HEX_ID and _HEX.fullmatch(text):
        return text[-2 * size :]
    return blake2b(text.encode(), digest_size=size).hexdigest()
