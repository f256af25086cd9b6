"""The trial of a version in a limited process: `python -m turnout.scoring.adapters.trial`.

Reads one frame (the event, the limits, the file), answers with two: that it began, and the verdict. Whatever the file
does here, it does to this process alone.
"""

from __future__ import annotations

import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import onnx
import onnxruntime as ort

from turnout.common.errors import Invalid
from turnout.common.events import Column, ModelReady
from turnout.scoring.adapters import frames
from turnout.scoring.adapters.watchdog import Watchdog, first_line, open_session
from turnout.scoring.adapters.worker import limit_memory
from turnout.scoring.domain.answer import Fault, read
from turnout.scoring.domain.signature import Row, Signature
from turnout.scoring.ports import BrokenError, StarvedError, TerminatedError

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
TYPES = {"number": "tensor(double)", "timestamp": "tensor(double)", "category": "tensor(string)"}
WARM_UP = 3
RUNS = 50
# A slow version is known to be slow after a few runs.
MEASURE_SECONDS = 1.0


class NotAdmittedError(Exception):
    """The trial's verdict: no, and why."""


def main() -> None:
    """Give the verdict and end."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    frame = frames.read(sys.stdin.buffer)
    if frame is None:
        return
    meta, _, content = frame
    ready = ModelReady.model_validate_json(meta["ready"])
    limit_memory(meta["memory"])
    seconds = math.ceil(meta["seconds"])
    resource.setrlimit(
        resource.RLIMIT_CPU, (int(time.process_time()) + seconds, int(time.process_time()) + seconds + 1)
    )
    replies.write(frames.pack({"began": True}))
    try:
        verdict: dict[str, Any] = {"milliseconds": trial(ready, content)}
    except (MemoryError, StarvedError) as error:
        why = str(error) or "it ran out of memory"
        verdict = {"refused": f"{why}; a version may have {meta['memory'] // 2**20} MiB"}
    except (NotAdmittedError, BrokenError) as refusal:
        verdict = {"refused": str(refusal)}
    replies.write(frames.pack(verdict))


def trial(ready: ModelReady, content: bytes) -> float:
    """Median milliseconds of one row. Raises `NotAdmittedError` or `BrokenError`."""
    check_file(content)
    session = open_session(content)
    check_ends(session, ready)
    return check_sample(session, ready)


def check_file(content: bytes) -> None:
    """One self-contained ONNX graph of standard operators, or `NotAdmittedError`."""
    try:
        model = onnx.load_model_from_string(content)
        graph_nodes = len(model.graph.node)
    except Exception:  # noqa: BLE001 (protobuf's error classes differ between its implementations)
        raise NotAdmittedError("the file is no ONNX model") from None
    if not graph_nodes:
        raise NotAdmittedError("the file is no ONNX model, or an empty one")
    if model.functions:
        raise NotAdmittedError("it brings functions of its own, which are not allowed")
    for domain in {opset.domain for opset in model.opset_import} - DOMAINS:
        raise NotAdmittedError(f"it uses operators of '{domain}', which are not allowed")
    for graph in _graphs(model.graph):
        _check_graph(graph)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # noqa: BLE001 (as above)
        raise NotAdmittedError(f"the ONNX checker refuses it: {first_line(error)}") from None


def check_ends(session: ort.InferenceSession, ready: ModelReady) -> None:
    """Inputs and the output are those that the event says, or `NotAdmittedError`."""
    found = {i.name: i for i in session.get_inputs()}
    declared = {c.name: c for c in ready.inputs}
    for name in declared.keys() - found.keys():
        raise NotAdmittedError(f"the graph has no input '{name}'")
    for name in found.keys() - declared.keys():
        raise NotAdmittedError(f"the graph wants an input '{name}' that the event does not name")
    for name, column in declared.items():
        shape, kind = found[name].shape, found[name].type
        if kind != TYPES[column.kind]:
            raise NotAdmittedError(f"input '{name}' is {kind}, a {column.kind} is {TYPES[column.kind]}")
        if len(shape) != 2 or shape[1] not in (1, None) or isinstance(shape[0], int):
            raise NotAdmittedError(f"input '{name}' has the shape {shape}, expected [rows, 1]")
    outputs = [o.name for o in session.get_outputs()]
    expected = ready.target.output(ready.inputs)
    if outputs != [expected]:
        raise NotAdmittedError(f"the outputs are {outputs}, expected ['{expected}']")


def check_sample(session: ort.InferenceSession, ready: ModelReady) -> float:
    """Every sample row is answered soundly, one row within the SLO; median milliseconds of one row."""
    rows = _sample(ready)
    signature = Signature(ready.inputs)
    watchdog = Watchdog()
    name = ready.target.output(ready.inputs)
    patience = max(1.0, ready.slo_ms / 1000 * 20)

    def run(some: list[Row]) -> float:
        feeds = signature.feeds(some)
        # Processor time: a graph cannot wait for anything, and other processes shall not count against it.
        started = time.thread_time()
        try:
            output = watchdog.run(session, name, feeds, patience)
        except TerminatedError:
            raise NotAdmittedError(f"a run over {len(some)} sample rows took longer than {patience:.0f} s") from None
        took = (time.thread_time() - started) * 1000
        for answer in read(output, ready.target, len(some)):
            if isinstance(answer, Fault):
                raise NotAdmittedError(f"on a sample row {answer.why}")
        return took

    run(rows)
    for index in range(WARM_UP):
        run([rows[index % len(rows)]])
    took: list[float] = []
    until = time.monotonic() + MEASURE_SECONDS
    while len(took) < RUNS and (len(took) < WARM_UP or time.monotonic() < until):
        took.append(run([rows[len(took) % len(rows)]]))
    median = statistics.median(took)
    if median > ready.slo_ms:
        raise NotAdmittedError(f"one row takes {median:.1f} ms, the SLO is {ready.slo_ms:g} ms")
    return median


def _sample(ready: ModelReady) -> list[Row]:
    signature = Signature(ready.inputs)
    try:
        rows = [signature.row(signature.lenient(values)) for values in ready.sample]
    except Invalid as error:
        raise NotAdmittedError(f"a sample row does not fit: {error}") from None
    return rows or [tuple(_zero(column) for column in ready.inputs)]


def _zero(column: Column) -> float | str:
    return "" if column.kind == "category" else 0.0


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside of it (the bodies of Loop, If and Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _graphs(inner)


def _check_graph(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.domain not in DOMAINS or not onnx.defs.has(
            node.op_type, "" if node.domain == "ai.onnx" else node.domain
        ):
            raise NotAdmittedError(f"the operator '{node.domain}:{node.op_type}' is not allowed")
    for tensor in _tensors(graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise NotAdmittedError("it reads data from outside of its file, which is not allowed")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            yield attribute.sparse_tensor.values
            yield attribute.sparse_tensor.indices


if __name__ == "__main__":
    main()
