"""What passes through the pipe between scoring and a version's process: JSON and raw arrays, never a pickle.

A frame is two lengths (4 bytes each, big-endian), a JSON object and bytes. A pickle would let a process that a model
took over run code in ours.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.typing import NDArray

HEAD = struct.Struct(">II")
# A version's answer to 1,000 rows with 1,000 classes is 4 MB; a larger frame is no honest answer.
MAX_FRAME = 512 * 1024 * 1024


def pack(meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None, body: bytes = b"") -> bytes:
    """A frame with `meta`, and arrays or a body of bytes."""
    parts: list[bytes] = [body]
    layout: list[dict[str, Any]] = []
    for name, array in (arrays or {}).items():
        entry: dict[str, Any] = {"name": name, "shape": array.shape}
        if array.dtype.kind == "O":
            entry["text"] = array.reshape(-1).tolist()
        else:
            entry["dtype"] = array.dtype.str
            parts.append(array.tobytes())
        layout.append(entry)
    head = orjson.dumps({**meta, "arrays": layout})
    size = sum(map(len, parts))
    return b"".join([HEAD.pack(len(head), size), head, *parts])


def unpack(head: bytes, body: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """`meta` and arrays of a frame. Raises `ValueError` if they do not fit together."""
    meta = orjson.loads(head)
    arrays: dict[str, NDArray[Any]] = {}
    at = 0
    for entry in meta.pop("arrays"):
        shape = tuple(int(size) for size in entry["shape"])
        if "text" in entry:
            array: NDArray[Any] = np.array(entry["text"], dtype=object)
        else:
            dtype = np.dtype(entry["dtype"])
            if dtype.kind not in "fiub":
                raise ValueError(f"an array of {dtype}")
            count = int(np.prod(shape))
            array = np.frombuffer(body, dtype, count, at)
            at += count * dtype.itemsize
        arrays[entry["name"]] = array.reshape(shape)
    return meta, arrays


def sizes(head: bytes) -> tuple[int, int]:
    """Lengths of a frame's two parts. Raises `ValueError` if it is too large."""
    meta, body = HEAD.unpack(head)
    if meta + body > MAX_FRAME:
        raise ValueError(f"a frame of {meta + body} bytes")
    return meta, body


def read(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, NDArray[Any]], bytes] | None:
    """The next frame of a blocking stream; None at its end."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    first, second = sizes(head)
    meta, body = stream.read(first), stream.read(second)
    if len(meta) < first or len(body) < second:
        return None
    return (*unpack(meta, body), body)
