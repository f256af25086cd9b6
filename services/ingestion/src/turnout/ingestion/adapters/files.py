"""Files that a source URI names, and their bytes: decompressed, limited, the same from the first read to the last."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Any, BinaryIO, cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from turnout.common.errors import Invalid, Unknown
from turnout.common.pipeline import Format
from turnout.ingestion.ports import Limits

_FORMATS: dict[str, Format] = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".data": "csv", ".parquet": "parquet", ".pq": "parquet",
    ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow", ".json": "json", ".ndjson": "json", ".jsonl": "json",
}  # fmt: skip
_COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, pa.ArrowInvalid)


def find(uri: str, roots: Sequence[Path]) -> list[Path]:
    """The files that `uri` names: a file, a folder (every file in it) or a glob, in the order of their names.

    Raises `Invalid` if there is none, or one does not lie under a root; links are followed before that is decided.
    """
    path = _local(uri)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p.relative_to(path))]
    elif has_magic(str(path)):
        matching = sorted(glob(str(path), recursive=True))  # noqa: PTH207 (Path.glob refuses an absolute pattern)
        found = [p for p in map(Path, matching) if p.is_file()]
    else:
        found = []
    allowed = [root.resolve() for root in roots]
    if not any(_anchor(path).is_relative_to(root) for root in allowed):
        raise _outside(uri, allowed)
    for one in found:
        if not any(one.resolve().is_relative_to(root) for root in allowed):
            raise _outside(str(one), allowed)
    if not found:
        raise _nothing(uri, path)
    return found


def _local(uri: str) -> Path:
    if "\0" in uri:
        raise Invalid("uri", "it holds a NUL character")
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return Path(os.path.abspath(Path(uri).expanduser()))  # noqa: PTH100 (resolve() would follow links of a glob)
    if scheme != "file":
        raise Invalid("uri", f"{scheme}:// cannot be read yet", fix="give a path, or file:///…")
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise Invalid("uri", f"{parts.netloc} is another machine", fix="file:///path, with three slashes")
    return Path(os.path.abspath(unquote(parts.path)))  # noqa: PTH100


def _anchor(path: Path) -> Path:
    """The part of `path` before any wildcard, links resolved."""
    parts = path.parts
    stop = next((at for at, part in enumerate(parts) if has_magic(part)), len(parts))
    return (path if path.exists() else Path(*parts[:stop])).resolve()


def _outside(uri: str, roots: Sequence[Path]) -> Invalid:
    listed = ", ".join(map(str, roots))
    return Invalid(
        "uri", f"{uri} lies outside the folders that may be read ({listed})",
        fix="move it there, or add its folder to TURNOUT_SOURCE_ROOTS",
    )  # fmt: skip


def _nothing(uri: str, path: Path) -> Invalid:
    if path.is_dir():
        return Invalid("uri", f"the folder {uri} holds no file")
    if has_magic(str(path)):
        return Invalid("uri", f"no file matches {uri}")
    try:
        beside = [p.name for p in path.parent.iterdir() if not p.name.startswith(".")]
    except OSError:
        beside = []
    near = Unknown.name("", "", path.name, beside).fix if beside else "check the path"
    return Invalid("uri", f"there is no file {uri}", fix=near)


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


@dataclass(frozen=True)
class SourceFile:
    """One file as it was when it was first looked at; `stamp` tells whether it still is."""

    path: Path
    size: int
    format: Format
    compression: str | None
    stamp: tuple[int, ...]
    limit: int

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.path.name

    def sha256(self) -> str:
        """The hash of the file's bytes as they lie there (compressed, if they are)."""
        with self._raw() as raw:
            return hashlib.file_digest(cast("Any", raw), "sha256").hexdigest()

    @contextmanager
    def open(self) -> Generator[BinaryIO]:
        """Its bytes from the start, decompressed. Raises `Invalid` when they are damaged, far more than they should
        be, or when the file is no longer what it was."""
        with self._raw() as raw:
            if self.compression is None:
                yield raw
            else:
                yield cast("BinaryIO", io.BufferedReader(_Limited(self, _decompressed(raw, self)), 2**16))

    @contextmanager
    def _raw(self) -> Generator[BinaryIO]:
        try:
            with self.path.open("rb") as raw:
                self._check(raw)
                yield raw
                self._check(raw)
        except FileNotFoundError:
            raise self._changed() from None
        except PermissionError:
            raise Invalid(self.name, "may not be read", fix="give Turnout's user the right to read it") from None

    def _check(self, raw: IO[bytes]) -> None:
        if _stamp(raw) != self.stamp:
            raise self._changed()

    def _changed(self) -> Invalid:
        return Invalid(self.name, "the file changed while it was read", fix="announce it again when it is complete")


def examine(path: Path, declared: Format | None, limits: Limits) -> SourceFile:
    """Say what a file is, by its first bytes and its name. Raises `Invalid` where it is empty or cannot be read."""
    try:
        with path.open("rb") as raw:
            stamp = _stamp(raw)
            head = raw.read(512)
    except FileNotFoundError:
        raise Invalid(path.name, "the file is gone") from None
    except PermissionError:
        raise Invalid(path.name, "may not be read", fix="give Turnout's user the right to read it") from None
    if not head:
        raise Invalid(path.name, "the file is empty")
    if head.startswith(b"PK\x03\x04"):
        raise Invalid(path.name, "it is a zip archive", fix="unpack it first")
    compression = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    size = stamp[0]
    return SourceFile(
        path, size, declared or _format(path, head, compression), compression, stamp,
        limits.decoded(size),
    )  # fmt: skip


def _format(path: Path, head: bytes, compression: str | None) -> Format:
    name = path.name.lower()
    for ending in _COMPRESSIONS:
        name = name.removesuffix(ending)
    suffix = Path(name).suffix
    if compression is None and head.startswith(b"PAR1"):
        return "parquet"
    if compression is None and head.startswith(b"ARROW1"):
        return "arrow"
    if suffix in _FORMATS:
        return _FORMATS[suffix]
    return "json" if compression is None and head.lstrip()[:1] in (b"{", b"[") else "csv"


def _stamp(raw: IO[bytes]) -> tuple[int, ...]:
    found = os.fstat(raw.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


def _decompressed(raw: IO[bytes], file: SourceFile) -> IO[bytes]:
    match file.compression:
        case "gzip":
            return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
        case "bz2":
            return cast("IO[bytes]", bz2.BZ2File(raw))
        case "xz":
            return cast("IO[bytes]", lzma.LZMAFile(raw))
        case "zstd":
            return cast("IO[bytes]", pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))
        case _:
            return raw


class _Limited(io.RawIOBase):
    """Reads on until the file has become more than it may; says what is wrong with it in our words."""

    def __init__(self, file: SourceFile, stream: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._stream = stream
        self._left = file.limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            data = self._stream.read(len(buffer))
        except (*_DAMAGED, OSError) as error:
            told = f"the {self._file.compression} data are cut off or damaged ({error})"
            raise Invalid(self._file.name, told, fix="copy the file again") from None
        buffer[: len(data)] = data
        self._left -= len(data)
        if self._left < 0:
            raise Invalid(
                self._file.name, f"{self._file.size:,} bytes unpack to more than {self._file.limit:,}",
                fix="unpack it first, if it is meant to be so",
            )  # fmt: skip
        return len(data)
