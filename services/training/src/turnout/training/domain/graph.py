"""An ONNX graph being written: nodes, constants and inputs, each tensor named once.

Opset 21 because strings are compared (`Equal` takes strings from 19) and because onnxruntime 1.18 and newer read
it; `ai.onnx.ml` 3 because 5 replaces the tree operators that every runtime on an edge device has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from turnout.common.events import Column

OPSETS: Mapping[str, int] = {"": 21, "ai.onnx.ml": 3}
IR_VERSION = 10
ML = "ai.onnx.ml"
Array = NDArray[Any]


class Graph:
    """A graph over raw columns: one input `[rows, 1]` each, FP64 or string, named exactly like the column."""

    def __init__(self, inputs: Sequence[Column]) -> None:
        self.inputs = tuple(inputs)
        self._nodes: list[NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._tensors: list[TensorProto] = []
        self._count = 0
        taken = {column.name for column in inputs}
        # No tensor of ours may be named like a column, whatever columns are called.
        self._prefix = "t"
        while any(name.startswith(self._prefix) for name in taken):
            self._prefix += "_"

    def new_name(self) -> str:
        """A tensor name that nothing has."""
        self._count += 1
        return f"{self._prefix}{self._count}"

    def constant(self, value: Array) -> str:
        """A tensor with this value; the same value twice is one tensor."""
        key = (
            str(value.dtype),
            value.shape,
            repr(value.tolist()).encode() if value.dtype == object else value.tobytes(),
        )
        if key not in self._constants:
            name = self.new_name()
            # helper.make_tensor would go through numpy, which drops NULs at the end of a text.
            tensor = (
                TensorProto(
                    name=name,
                    data_type=TensorProto.STRING,
                    dims=value.shape,
                    string_data=[str(text).encode() for text in value.ravel()],
                )
                if value.dtype == object
                else numpy_helper.from_array(np.ascontiguousarray(value), name)
            )
            self._tensors.append(tensor)
            self._constants[key] = name
        return self._constants[key]

    def number(self, value: float) -> str:
        """An FP64 constant `[1, 1]`, to be spread over rows and columns."""
        return self.constant(np.array([[value]], dtype=np.float64))

    def text(self, value: str) -> str:
        """A string constant `[1, 1]`."""
        return self.constant(np.array([[value]], dtype=object))

    def node(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """The one output of a new node."""
        output = self.new_name()
        self._nodes.append(helper.make_node(operator, list(inputs), [output], domain=domain, **attributes))
        return output

    def where(self, condition: str, then: str, otherwise: str) -> str:
        """Elementwise choice."""
        return self.node("Where", condition, then, otherwise)

    def cast(self, tensor: str, to: int) -> str:
        """The tensor as another type of `TensorProto`."""
        return self.node("Cast", tensor, to=to)

    def include(self, model: ModelProto, tensor: str, output: str) -> str:
        """Put another model's nodes here, fed with `tensor`; the name of its `output` here."""
        graph = model.graph
        renamed = {graph.input[0].name: tensor, "": ""}
        for made in (*graph.initializer, *(_Named(name) for node in graph.node for name in node.output)):
            if made.name not in renamed:
                renamed[made.name] = self.new_name()
        for constant in graph.initializer:
            copy = TensorProto()
            copy.CopyFrom(constant)
            copy.name = renamed[constant.name]
            self._tensors.append(copy)
        for node in graph.node:
            self._nodes.append(_renamed(node, renamed))
        return renamed[output]

    def model(
        self, output: str, tensor: str, kind: int, shape: Sequence[int | None], notes: Mapping[str, str]
    ) -> ModelProto:
        """The finished model with one output, which no column may be called like.

        Nodes that do not lead to the output are left out. Raises `onnx.checker.ValidationError` if it is not valid.
        """
        nodes = _leading_to(tensor, self._nodes)
        nodes.append(helper.make_node("Identity", [tensor], [output]))
        read = {name for node in nodes for name in _reads(node)}
        graph = helper.make_graph(
            nodes,
            "turnout",
            [
                helper.make_tensor_value_info(
                    column.name, TensorProto.STRING if column.kind == "category" else TensorProto.DOUBLE, [None, 1]
                )
                for column in self.inputs
            ],
            [helper.make_tensor_value_info(output, kind, list(shape))],
            [tensor for tensor in self._tensors if tensor.name in read],
        )
        model = helper.make_model(
            graph,
            producer_name="turnout",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in OPSETS.items()],
        )
        helper.set_model_props(model, dict(notes))
        onnx.checker.check_model(model)
        return model


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = ""
    del copy.input[:], copy.output[:]
    copy.input.extend(names.get(name, name) for name in node.input)
    copy.output.extend(names.get(name, name) for name in node.output)
    for attribute in copy.attribute:
        if attribute.type == AttributeProto.GRAPH:
            _rename_outer(attribute.g, names)
    return copy


def _rename_outer(graph: GraphProto, names: Mapping[str, str]) -> None:
    """In the body of a loop or branch, follow the new names of what it reads from outside."""
    own = {made.name for made in (*graph.input, *graph.initializer)} | {n for node in graph.node for n in node.output}
    outer = {old: new for old, new in names.items() if old not in own}
    nodes = [_renamed(node, outer) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _reads(node: NodeProto) -> set[str]:
    read = set(node.input)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            read |= {name for inner in attribute.g.node for name in _reads(inner)}
            read |= {out.name for out in attribute.g.output}
    return read


def _leading_to(tensor: str, nodes: Sequence[NodeProto]) -> list[NodeProto]:
    needed = {tensor}
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed |= _reads(node)
    return kept[::-1]
