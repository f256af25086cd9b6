"""One bucket of an S3 server, below a prefix.

Parquet goes through pyarrow's file system, which streams it. Names go through botocore: pyarrow offers no conditional
PUT, and its deletes leave empty objects behind as folders. On a conditional PUT rests that the first writer of a
manifest wins (`If-None-Match: *`) and that an erasure replaces what it has read (`If-Match`).
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from pyarrow import fs
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_random_exponential

from turnout.common.errors import Invalid, Unavailable, Unknown

if TYPE_CHECKING:
    from turnout.common.lake.settings import LakeSettings

ATTEMPTS = 3
# The largest answer to a listing and the largest list of names to delete in one request.
PAGE = 1_000
# Keys are at most this long (S3's limit, in bytes of UTF-8).
MAX_KEY = 1_024
PIECE = 8 * 2**20

_OPTIONS = ("endpoint_override", "scheme", "region")
_KEYS = "TURNOUT_LAKE_ACCESS_KEY and TURNOUT_LAKE_SECRET_KEY"
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "InvalidToken", "ExpiredToken"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301", "IllegalLocationConstraintException"}
# What pyarrow tells of an error: "… AWS Error ACCESS_DENIED during HeadObject operation: …".
_ARROW = re.compile(r"AWS Error ([A-Z_]+)(?: \(HTTP status (\d+)\))? during")
_ARROW_REFUSED = {"ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_SIGNATURE"}


@dataclass(frozen=True)
class Content:
    """A small object whole; `tag` names this state of it."""

    content: bytes
    tag: str


@dataclass(frozen=True)
class Entry:
    """An object in a listing; `key` is relative to the prefix, `modified` in seconds since 1970."""

    key: str
    modified: float
    bytes: int


class Bucket:
    """The objects of `settings.uri`. Raises `Invalid` for a URI or an endpoint that is none.

    Every method raises `Unavailable`, which names the server and the setting to mend, and never a key.
    """

    def __init__(self, settings: LakeSettings) -> None:
        self._settings = settings
        if bool(settings.access_key) != bool(settings.secret_key):
            raise Invalid("TURNOUT_LAKE_ACCESS_KEY", "an access key and its secret key go together", fix=f"set {_KEYS}")
        self.name, self._prefix, options = _parsed(settings.uri or "")
        self._region = settings.region or options.get("region")
        self._endpoint = _endpoint(settings.endpoint, options)
        place = self._endpoint or f"s3.{self._region or 'us-east-1'}.amazonaws.com"
        self._what = f"the lake at {place}, bucket {self.name}"

    def path(self, key: str) -> str:
        """A key as `filesystem` names it."""
        return f"{self.name}/{self._key(key)}"

    def get(self, key: str, *, limit: int | None = None) -> Content | None:
        """An object, or None. Raises `ValueError` for one of more than `limit` bytes."""
        with self.reaching():
            try:
                found = self._client.get_object(Bucket=self.name, Key=self._key(key))
            except self._client.exceptions.NoSuchKey:
                return None
            with found["Body"] as body:
                if limit is not None and found["ContentLength"] > limit:
                    raise ValueError(key)
                return Content(body.read(), found["ETag"])

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return any(entry.key == key for entry in self.list(key))

    def put(self, key: str, content: bytes) -> None:
        """Make an object, or replace the one that is there."""
        with self.reaching():
            self._put(key, content)

    def create(self, key: str, content: bytes) -> bool:
        """Make an object; false, and nothing changed, where there is one of that name."""
        with self.reaching():
            return self._put(key, content, IfNoneMatch="*")

    def replace(self, key: str, content: bytes, tag: str) -> bool:
        """Replace an object; false, and nothing changed, where it is no longer the one of `tag`."""
        with self.reaching():
            return self._put(key, content, IfMatch=tag)

    def upload(self, path: Path, key: str) -> None:
        """Make an object of a file, however large, in constant memory."""
        with self.reaching(), path.open("rb") as source:
            if path.stat().st_size <= PIECE:
                self._put(key, source.read())
                return
            with self.filesystem.open_output_stream(self.path(key)) as target:
                shutil.copyfileobj(source, target, PIECE)

    def list(self, prefix: str) -> Iterator[Entry]:
        """Every object whose key begins so, in the order of keys."""
        with self.reaching():
            for page in self._pages("list_objects_v2", prefix):
                for found in page.get("Contents", ()):
                    yield Entry(self._relative(found["Key"]), found["LastModified"].timestamp(), found["Size"])

    def folders(self, prefix: str) -> Iterator[str]:
        """The names that follow `prefix` up to the next slash."""
        with self.reaching():
            for page in self._pages("list_objects_v2", prefix, Delimiter="/"):
                for found in page.get("CommonPrefixes", ()):
                    yield self._relative(found["Prefix"]).removeprefix(prefix).rstrip("/")

    def delete(self, keys: Iterable[str]) -> int:
        """Remove objects; how many were named. One that is not there is no error."""
        gone, rest = 0, iter(keys)
        while names := list(islice(rest, PAGE)):
            with self.reaching():
                objects = [{"Key": self._key(name)} for name in names]
                answer = self._client.delete_objects(Bucket=self.name, Delete={"Objects": objects, "Quiet": True})
            for failed in answer.get("Errors", ()):
                raise self._refused(failed.get("Code", "")) or Unavailable(self._what, f"no delete: {failed['Code']}")
            gone += len(names)
        return gone

    def abort_uploads(self, prefix: str, before: datetime) -> int:
        """Give up uploads that a dead process began; how many. They are seen in no listing, but cost."""
        gone = 0
        with self.reaching():
            for page in self._pages("list_multipart_uploads", prefix):
                for found in page.get("Uploads", ()):
                    if found["Initiated"].timestamp() < before.timestamp():
                        named = {"Key": found["Key"], "UploadId": found["UploadId"]}
                        self._client.abort_multipart_upload(Bucket=self.name, **named)
                        gone += 1
        return gone

    @cached_property
    def filesystem(self) -> fs.S3FileSystem:
        """For pyarrow; its errors are translated by `reaching`."""
        settings = self._settings
        scheme, _, host = (self._endpoint or "").partition("://")
        return fs.S3FileSystem(
            access_key=settings.access_key or None,
            secret_key=settings.secret_key.get_secret_value() if settings.secret_key else None,
            region=self._region,
            endpoint_override=host or None,
            scheme=scheme or None,
            connect_timeout=settings.connect_seconds,
            request_timeout=settings.answer_seconds,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        )

    @cached_property
    def _client(self) -> Any:
        settings = self._settings
        secret = settings.secret_key.get_secret_value() if settings.secret_key else None
        limits = (settings.connect_seconds, settings.answer_seconds)
        return _opened(self._endpoint, self._region, settings.access_key or None, secret, limits)

    def _put(self, key: str, content: bytes, **condition: str) -> bool:
        # S3 answers 409 where another request of that name was being worked on: the same one again tells.
        attempts = retry(
            retry=retry_if_exception(lambda error: _status(error) == 409),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(max=1),
            reraise=True,
        )
        try:
            attempts(self._client.put_object)(Bucket=self.name, Key=self._key(key), Body=content, **condition)
        except self._client.exceptions.ClientError as error:
            # 404: what was to be replaced is gone.
            if condition and (_status(error) == 412 or ("IfMatch" in condition and _code(error) == "NoSuchKey")):
                return False
            raise
        return True

    def _pages(self, operation: str, prefix: str, **options: str) -> Iterator[Any]:
        return self._client.get_paginator(operation).paginate(Bucket=self.name, Prefix=self._key(prefix), **options)

    def _key(self, key: str) -> str:
        return f"{self._prefix}{key}"

    def _relative(self, key: str) -> str:
        return key.removeprefix(self._prefix)

    @contextmanager
    def reaching(self) -> Generator[None]:
        """What botocore and pyarrow raise becomes `Unavailable`."""
        try:
            yield
        except OSError as error:
            raise self._of_arrow(error) from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "botocore":
                raise
            # Not chained: what botocore says may hold a request with its signature.
            raise self._of_botocore(error) from None

    def _of_botocore(self, error: Exception) -> Unavailable:
        code = _code(error)
        known = self._refused(code, _status(error))
        if known is not None:
            return known
        name = type(error).__name__
        if code:
            return Unavailable(self._what, f"it answers {code}")
        if name in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
            return Unavailable(self._what, f"there is no key; set {_KEYS}")
        return Unavailable(self._what, f"no answer ({name}); is TURNOUT_LAKE_ENDPOINT right?")

    def _of_arrow(self, error: OSError) -> Unavailable:
        if error.errno == errno.ENOSPC:
            return Unavailable("the lake", "the disk of this machine is full, where its files are put together")
        found = _ARROW.search(str(error))
        if found is None:
            return Unavailable(self._what, error.strerror or "an object is gone or cannot be read")
        code, status = found[1], int(found[2] or 0)
        if code in _ARROW_REFUSED:
            code, status = "AccessDenied", 403
        known = self._refused({"NO_SUCH_BUCKET": "NoSuchBucket"}.get(code, code), status)
        if known is not None:
            return known
        if code == "NETWORK_CONNECTION":
            return Unavailable(self._what, "no answer; is TURNOUT_LAKE_ENDPOINT right?")
        return Unavailable(self._what, f"it answers {code}")

    def _refused(self, code: str, status: int = 0) -> Unavailable | None:
        """What an operator has to mend, if this is it."""
        if code in _REFUSED or status in (401, 403):
            return Unavailable(self._what, f"it refuses the key ({code or status}); see {_KEYS}, and the key's rights")
        if code == "NoSuchBucket":
            return Unavailable(self._what, "there is no such bucket; make it or mend TURNOUT_LAKE_URI")
        if code in _ELSEWHERE:
            return Unavailable(self._what, "the bucket lies in another region; set TURNOUT_LAKE_REGION")
        if status == 501:
            return Unavailable(self._what, "the server knows no conditional PUT; a lake needs one that does")
        return None


@cache
def _opened(
    endpoint: str | None, region: str | None, key: str | None, secret: str | None, limits: tuple[float, float]
) -> Any:
    """A client, which takes a tenth of a second to make: one for all lakes that tasks bring into this process.

    `limits`: the longest wait for a connection and for the next byte, in seconds.
    """
    from botocore.config import Config  # noqa: PLC0415 (only a lake on S3 needs it)
    from botocore.session import get_session  # noqa: PLC0415

    return get_session().create_client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(
            connect_timeout=limits[0],
            read_timeout=limits[1],
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
            # Servers other than Amazon's seldom know bucket names as host names.
            s3={"addressing_style": "path" if endpoint else "auto"},
            # Nor checksums that nobody asked for.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _parsed(uri: str) -> tuple[str, str, dict[str, str]]:
    """Bucket, prefix (empty, or ending in a slash) and options.

    No part of a wrong URI is repeated in the error: it may hold a key.
    """
    example = "write s3://BUCKET/PREFIX"
    try:
        parts = urlsplit(uri)
        userinfo, bucket = "@" in parts.netloc, parts.netloc
    except ValueError:
        raise Invalid("TURNOUT_LAKE_URI", "is no URI", fix=example) from None
    if userinfo:
        raise Invalid("TURNOUT_LAKE_URI", "holds a key", fix=f"set {_KEYS} instead")
    if parts.scheme != "s3" or not bucket or parts.fragment:
        raise Invalid("TURNOUT_LAKE_URI", "does not name a bucket of an S3 server", fix=example)
    options = dict(parse_qsl(parts.query))
    for name in options:
        if name not in _OPTIONS:
            raise Unknown.name("TURNOUT_LAKE_URI", "option", name, _OPTIONS)
    prefix = parts.path.strip("/")
    return bucket, f"{prefix}/" if prefix else "", options


def _endpoint(setting: str | None, options: dict[str, str]) -> str | None:
    """The server's URL, from the setting or the URI's options; None for Amazon's."""
    found = setting or options.get("endpoint_override")
    if not found:
        return None
    if "://" not in found:
        found = f"{options.get('scheme', 'https')}://{found}"
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise Invalid("TURNOUT_LAKE_ENDPOINT", "is no URL of a server", fix="write https://HOST:PORT")
    return f"{parts.scheme}://{parts.netloc}"


def _code(error: BaseException) -> str:
    response: Any = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int:
    response: Any = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
