"""ONNX graphs for tests, each a version of the pipeline in `builders` (inputs `age`, `colour`; classes `no`, `yes`).

The bad ones behave while `age` is below 100 and do their worst from there on, so that they pass admission on a tame
sample as a real version would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from builders import model_ready
from onnx import TensorProto, helper, numpy_helper

from turnout.common.events import ModelFile, ModelReady
from turnout.common.lake.port import Lake

WILD = 100.0
TAME_SAMPLE = ({"age": 40.0, "colour": "red"}, {"age": 41.0, "colour": "blue"})


def _constant(name: str, value: Any, dtype: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype=dtype), name)


def model(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto] = (),
    *,
    output: tuple[str, int, Sequence[Any]] = ("probabilities", TensorProto.FLOAT, [None, 2]),
    domains: Sequence[str] = ("", "ai.onnx.ml"),
) -> bytes:
    """A file with the inputs `age` (number) and `colour` (category)."""
    inputs = [
        helper.make_tensor_value_info("age", TensorProto.DOUBLE, [None, 1]),
        helper.make_tensor_value_info("colour", TensorProto.STRING, [None, 1]),
    ]
    outputs = [helper.make_tensor_value_info(*output)]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, initializer=list(constants))
    versions = {"": 18, "ai.onnx.ml": 3}
    opsets = [helper.make_opsetid(domain, versions.get(domain, 1)) for domain in domains]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def _probabilities(bias: float, logit: str = "z") -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """p(yes) = sigmoid(age / 100 + (colour is red) + bias), missing age counts as 50."""
    nodes = [
        helper.make_node("IsNaN", ["age"], ["age_missing"]),
        helper.make_node("Where", ["age_missing", "fifty", "age"], ["age_known"]),
        helper.make_node("Div", ["age_known", "hundred"], ["a"]),
        helper.make_node(
            "LabelEncoder", ["colour"], ["c32"], domain="ai.onnx.ml",
            keys_strings=["red"], values_floats=[1.0], default_float=0.0,
        ),
        helper.make_node("Cast", ["c32"], ["c"], to=TensorProto.DOUBLE),
        helper.make_node("Add", ["a", "c"], ["ac"]),
        helper.make_node("Add", ["ac", "bias"], [logit]),
    ]  # fmt: skip
    constants = [
        _constant("fifty", 50.0, np.float64),
        _constant("hundred", 100.0, np.float64),
        _constant("bias", bias, np.float64),
    ]
    return nodes, constants


def _sigmoid(logit: str = "z", output: str = "probabilities") -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    nodes = [
        helper.make_node("Sigmoid", [logit], ["p"]),
        helper.make_node("Sub", ["one", "p"], ["q"]),
        helper.make_node("Concat", ["q", "p"], ["both"], axis=1),
        helper.make_node("Cast", ["both"], [output], to=TensorProto.FLOAT),
    ]
    return nodes, [_constant("one", 1.0, np.float64)]


def good(bias: float = 0.0) -> bytes:
    """Answers at once."""
    nodes, constants = _probabilities(bias)
    more, others = _sigmoid()
    return model([*nodes, *more], [*constants, *others])


def _wildness() -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """`wild`: how far the largest age is beyond 100, never below 0."""
    nodes = [
        helper.make_node("ReduceMax", ["age_known"], ["oldest"], keepdims=0),
        helper.make_node("Sub", ["oldest", "hundred"], ["beyond"]),
        helper.make_node("Relu", ["beyond"], ["wild"]),
    ]
    return nodes, []


def slow(iterations_per_year: int = 100_000) -> bytes:
    """A loop of so many turns for each year beyond 100, about 1 µs each; it can be terminated."""
    turns = [
        helper.make_node("Mul", ["wild", "per_year"], ["turns_real"]),
        helper.make_node("Cast", ["turns_real"], ["turns"], to=TensorProto.INT64),
    ]
    return _looping(turns, [_constant("per_year", float(iterations_per_year), np.float64)])


def endless() -> bytes:
    """A loop without an end, whatever the row."""
    return _looping([], [_constant("turns", 2**62, np.int64)])


def _looping(turns: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto]) -> bytes:
    start, given = _probabilities(0.0)
    wild, _ = _wildness()
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Add", ["sum_in", "tiny"], ["sum_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_in", TensorProto.DOUBLE, []),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.DOUBLE, []),
        ],
        initializer=[_constant("tiny", 0.0, np.float64)],
    )
    loop = [
        *turns,
        helper.make_node("Loop", ["turns", "go", "zero"], ["sum"], body=body),
        helper.make_node("Add", ["z", "sum"], ["z_looped"]),
    ]
    end, others = _sigmoid("z_looped")
    more = [_constant("go", True, np.bool_), _constant("zero", 0.0, np.float64)]
    return model([*start, *wild, *loop, *end], [*given, *constants, *more, *others])


def raising() -> bytes:
    """Takes an element that is not there."""
    start, given = _probabilities(0.0)
    wild, _ = _wildness()
    nodes = [
        helper.make_node("Cast", ["wild"], ["place"], to=TensorProto.INT64),
        helper.make_node("Gather", ["single", "place"], ["found"], axis=0),
        helper.make_node("Add", ["z", "found"], ["z_more"]),
    ]
    end, others = _sigmoid("z_more")
    return model([*start, *wild, *nodes, *end], [*given, *others, _constant("single", [0.0], np.float64)])


def not_a_number() -> bytes:
    """Answers NaN: the logarithm of a number below zero."""
    start, given = _probabilities(0.0)
    wild, _ = _wildness()
    nodes = [
        helper.make_node("Sub", ["one", "wild"], ["below"]),
        helper.make_node("Log", ["below"], ["log"]),
        helper.make_node("Add", ["z", "log"], ["z_more"]),
    ]
    end, others = _sigmoid("z_more")
    return model([*start, *wild, *nodes, *end], [*given, *others])


def misshapen() -> bytes:
    """Answers more classes than there are."""
    start, given = _probabilities(0.0)
    wild, _ = _wildness()
    end, others = _sigmoid(output="right")
    nodes = [
        helper.make_node("Cast", ["wild"], ["beyond_whole"], to=TensorProto.INT64),
        helper.make_node("Add", ["beyond_whole", "one_whole"], ["times"]),
        helper.make_node("Concat", ["one_row", "times_row"], ["repeats"], axis=0),
        helper.make_node("Tile", ["right", "repeats"], ["probabilities"]),
    ]
    nodes.insert(2, helper.make_node("Unsqueeze", ["times", "axis"], ["times_row"]))
    more = [
        _constant("one_whole", 1, np.int64),
        _constant("one_row", [1], np.int64),
        _constant("axis", [0], np.int64),
    ]
    return model([*start, *wild, *end, *nodes], [*given, *others, *more])


def out_of_range() -> bytes:
    """Answers probabilities beyond one."""
    start, given = _probabilities(0.0)
    wild, _ = _wildness()
    end, others = _sigmoid(output="right")
    nodes = [
        helper.make_node("Cast", ["wild"], ["wild32"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["right", "wild32"], ["probabilities"]),
    ]
    return model([*start, *wild, *end, *nodes], [*given, *others])


def hungry(bytes_per_year: int = 2**30, always: bool = False) -> bytes:
    """Asks for a gigabyte for each year beyond 100, or 8 GB for every row."""
    start, given = _probabilities(0.0)
    wild, _ = _wildness()
    nodes = [
        helper.make_node("Mul", ["wild", "per_year"], ["size_real"]),
        helper.make_node("Cast", ["size_real"], ["size_whole"], to=TensorProto.INT64),
        helper.make_node("Add", ["size_whole", "least"], ["size"]),
        helper.make_node(
            "ConstantOfShape", ["size"], ["field"], value=helper.make_tensor("v", TensorProto.DOUBLE, [1], [0.0])
        ),
        helper.make_node("ReduceSum", ["field"], ["field_sum"], keepdims=0),
        helper.make_node("Add", ["z", "field_sum"], ["z_more"]),
    ]
    end, others = _sigmoid("z_more")
    more = [
        _constant("per_year", bytes_per_year / 8, np.float64),
        _constant("least", [2**30 if always else 1], np.int64),
    ]
    return model([*start, *wild, *nodes, *end], [*given, *others, *more])


def external(path: str) -> bytes:
    """Wants its weights from a file beside it."""
    nodes, constants = _probabilities(0.0)
    more, others = _sigmoid()
    file = onnx.load_model_from_string(model([*nodes, *more], [*constants, *others]))
    tensor = file.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=path)
    return file.SerializeToString()


def foreign_operator() -> bytes:
    """Uses an operator that a library would have to bring."""
    nodes = [helper.make_node("Anything", ["age"], ["probabilities"], domain="my.company")]
    return model(nodes, domains=("", "my.company"))


def regression(slope: float = 2.0) -> bytes:
    """score = slope x age."""
    nodes = [
        helper.make_node("Mul", ["age", "slope"], ["score64"]),
        helper.make_node("Cast", ["score64"], ["score"], to=TensorProto.FLOAT),
    ]
    constants = [_constant("slope", slope, np.float64)]
    return model(nodes, constants, output=("score", TensorProto.FLOAT, [None, 1]))


def named_like_its_output() -> bytes:
    """score_ = 2 x score: a column has the name that a regression's output has otherwise."""
    nodes = [
        helper.make_node("Mul", ["score", "slope"], ["twice"]),
        helper.make_node("Cast", ["twice"], ["score_"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("score", TensorProto.DOUBLE, [None, 1])],
        [helper.make_tensor_value_info("score_", TensorProto.FLOAT, [None, 1])],
        initializer=[_constant("slope", 2.0, np.float64)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def put(lake: Lake, content: bytes, version: str = "1", **fields: Any) -> ModelReady:
    """The file in the lake and the event that says so."""
    file: ModelFile = lake.put_model(fields.get("pipeline", "p"), content)
    return model_ready(version, **{"file": file, "sample": TAME_SAMPLE, **fields})


def lying(content: bytes, version: str = "1", **fields: Any) -> tuple[ModelReady, bytes]:
    """An event and a file without a lake."""
    digest = hashlib.sha256(content).hexdigest()
    file = ModelFile(uri="nowhere", sha256=digest, size=len(content))
    return model_ready(version, **{"file": file, "sample": TAME_SAMPLE, **fields}), content
