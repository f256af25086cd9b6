"""What things of a lake are called, relative to its root, whatever the root is.

<kind>/<pipeline>/<id>/manifest.json      what exists
<kind>/<pipeline>/<id>/<token>/…parquet   its files; each writer has a token of its own
<kind>/<pipeline>/.recent.json            ids of the newest, oldest first; no id begins with a dot
models/<pipeline>/<sha256>.onnx           model files
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import get_args

from turnout.common.errors import Invalid, Unknown
from turnout.common.events import DataSetRef, ModelFile
from turnout.common.lake.port import Manifest

KINDS: tuple[str, ...] = get_args(DataSetRef.model_fields["kind"].annotation)
MANIFEST = "manifest.json"
RECENT = ".recent.json"
# Names in the list of the newest.
MAX_RECENT = 64
MAX_MODEL = 2**30

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_MODEL_URI = re.compile(r"models/(?P<pipeline>[^/]+)/(?P<name>[0-9a-f]{64}\.onnx)")


def pipeline_place(kind: str, pipeline: str) -> str:
    """Where a pipeline's things of a kind lie. Raises `Invalid` for what is no name or no kind."""
    if kind not in KINDS:
        raise Unknown.name("kind", "kind of data set", kind, KINDS)
    return f"{kind}/{_name(pipeline, 'pipeline')}"


def place(ref: DataSetRef) -> str:
    """Where a data set lies. Raises `Invalid` for what is no name or no kind."""
    return f"{pipeline_place(ref.kind, ref.pipeline)}/{_name(ref.id, 'id')}"


def recent_place(kind: str, pipeline: str) -> str:
    """Where the list of the newest lies. Raises `Invalid` for what is no name or no kind."""
    return f"{pipeline_place(kind, pipeline)}/{RECENT}"


def with_newest(ids: Sequence[str], ident: str) -> list[str]:
    """The list of the newest with one more, or with one that was there as the newest."""
    return [*(other for other in ids if other != ident), ident][-MAX_RECENT:]


def model_file(pipeline: str, content: bytes) -> ModelFile:
    """The name of a model file with this content; its `uri` is where it lies."""
    sha256 = hashlib.sha256(content).hexdigest()
    return ModelFile(uri=f"{pipeline_place('models', pipeline)}/{sha256}.onnx", sha256=sha256, size=len(content))


def model_place(file: ModelFile) -> str:
    """Where a model file lies. Raises `Invalid` for a URI that leads elsewhere."""
    match = _MODEL_URI.fullmatch(file.uri)
    if match is None:
        raise Invalid("file.uri", f"{file.uri[:100]!r} is no model file of the lake")
    return f"{pipeline_place('models', match['pipeline'])}/{match['name']}"


def no_model(file: ModelFile) -> Invalid:
    """The error of a model file that is not there."""
    return Invalid("file.uri", f"{file.uri} is not in the lake")


def check_size(size: int) -> None:
    """Raises `Invalid` for a model file too large to be read."""
    if size > MAX_MODEL:
        raise too_large()


def too_large() -> Invalid:
    """The error of a model file that is not read."""
    return Invalid("file.uri", f"the model file is larger than {MAX_MODEL:,} bytes")


def check_content(file: ModelFile, content: bytes) -> None:
    """Raises `Invalid` where the bytes are not those of the name."""
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise Invalid("file.sha256", f"{file.uri} holds other bytes than were registered")


def tokens(manifest: Manifest) -> set[str]:
    """Whose writers' files a manifest names."""
    return {file.path.partition("/")[0] for file in manifest.files}


def _name(name: str, field: str) -> str:
    if not _NAME.fullmatch(name):
        raise Invalid(field, f"{name[:60]!r} is no name", fix="letters, digits, '.', '_' and '-', at most 200")
    return name
