"""What must not be read in a log, an event or a reply: secrets inside of texts."""

from __future__ import annotations

import re

MAX_TEXT = 1_000
_HIDDEN = "***"
_SECRETS = (
    # scheme://user:password@host
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    # password=…, "api_key": "…", token: …
    re.compile(
        r"""(?ix)(?<=[\w.-])?(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|credential s?)
        ["']?\s*[=:]\s*["']?(?P<secret>[^\s"',;&}]+)"""
    ),
    re.compile(r"(?i)\bbearer\s+(?P<secret>[\w.~+/=-]{8,})"),
    re.compile(r"turnout_[\w-]{20,}"),
)


def redact(text: str) -> str:
    """`text` without what looks like a secret, and not endless."""
    for pattern in _SECRETS:
        text = pattern.sub(_hide, text)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " …"


def _hide(match: re.Match[str]) -> str:
    found = match.groupdict().get("secret")
    return _HIDDEN if found is None else match.group().replace(found, _HIDDEN)
