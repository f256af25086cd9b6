"""A version that is fast on the sample it is admitted with and slow on live requests, on purpose.

It is the given graph with one addition: where `column` is present, a loop turns `turns` times before the answer
comes out unchanged. A graph that is slow for everybody would never be admitted; one that is slow for the rows nobody
tried is what happens in practice.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def slowed(graph: bytes, column: str, turns: int) -> bytes:
    """The ONNX model `graph` with a loop in front of its output for rows in which the number `column` is present."""
    model = onnx.load_from_string(graph)
    output = model.graph.output[0]
    inner = f"{output.name}_in_time"
    for node in model.graph.node:
        node.output[:] = [inner if name == output.name else name for name in node.output]
        node.input[:] = [inner if name == output.name else name for name in node.input]

    def constant(name: str, value: object, kind: type) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(value, dtype=kind), name)

    model.graph.initializer.extend(
        [
            constant("slow_turns", turns, np.int64),
            constant("slow_go_on", True, np.bool_),
            constant("slow_zero", 0.0, np.float32),
        ]
    )
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on_in"], ["go_on_out"]),
            helper.make_node("Mul", ["waste_in", "waste_in"], ["waste_out"]),
        ],
        "waste",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("waste_in", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("waste_out", TensorProto.FLOAT, []),
        ],
    )
    model.graph.node.extend(
        [
            helper.make_node("IsNaN", [column], ["slow_missing"]),
            helper.make_node("Not", ["slow_missing"], ["slow_present"]),
            helper.make_node("Cast", ["slow_present"], ["slow_counts"], to=TensorProto.INT64),
            helper.make_node("ReduceMax", ["slow_counts"], ["slow_any"], keepdims=0),
            helper.make_node("Mul", ["slow_any", "slow_turns"], ["slow_trips"]),
            helper.make_node("Loop", ["slow_trips", "slow_go_on", "slow_zero"], ["slow_waste"], body=body),
            helper.make_node("Add", [inner, "slow_waste"], [output.name]),
        ]
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()
