"""Tensors of the Open Inference Protocol, version 2, to named values and back.

Source: kserve/open-inference-protocol, `specification/protocol/inference_rest.md`. Data are row-major, nested or
flat; one tensor per raw column, or one packed numeric tensor with the columns in declared order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from turnout.common.errors import Invalid
from turnout.common.events import Target
from turnout.scoring.domain.answer import Answer
from turnout.scoring.domain.signature import Signature, unknown

_INTEGERS: Mapping[str, tuple[int, int]] = {
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}
_FLOATS = ("FP16", "FP32", "FP64")
DATATYPES = ("BOOL", *_INTEGERS, *_FLOATS, "BYTES")
_MAX_DIMENSIONS = 8

Tensor = dict[str, Any]


def rows_of(inputs: object, signature: Signature, most: int) -> list[dict[str, Any]]:
    """The rows in a request's `inputs`, as named values. Raises `Invalid` naming the tensor.

    `most` bounds the rows. A null is a missing value: JSON has no NaN.
    """
    if not isinstance(inputs, list) or not inputs:
        raise Invalid(
            "inputs", "a list of tensors is expected", fix='[{"name": …, "shape": …, "datatype": …, "data": …}]'
        )
    tensors = [_checked(tensor, f"inputs[{index}]") for index, tensor in enumerate(inputs)]
    if len(tensors) == 1 and _is_packed(tensors[0], signature):
        return _packed(tensors[0], signature, most)
    columns: dict[str, list[Any]] = {}
    for name, shape, data in tensors:
        if name not in signature.names:
            raise unknown("inputs", "input", name, signature.names)
        if name in columns:
            raise Invalid(f"inputs.{name}", "is there twice", fix="give each column one tensor")
        if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1) or not shape:
            raise Invalid(f"inputs.{name}", f"its shape is {shape}", fix="one column is [rows] or [rows, 1]")
        _check_rows(shape[0], most)
        columns[name] = data
    counts = {name: len(data) for name, data in columns.items()}
    if len(set(counts.values())) > 1:
        raise Invalid("inputs", f"the tensors have different numbers of rows: {counts}")
    names = list(columns)
    return [dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def inputs_of(signature: Signature) -> list[Tensor]:
    """The metadata of a version's inputs; a time is seconds since 1970, or text (ISO 8601) as BYTES."""
    return [
        {"name": c.name, "datatype": "BYTES" if c.kind == "category" else "FP64", "shape": [-1, 1]}
        for c in signature.columns
    ]


def outputs_of(target: Target) -> list[Tensor]:
    """The metadata of what a version answers."""
    match target.task:
        case "classification":
            return [
                {"name": "label", "datatype": "BYTES", "shape": [-1]},
                {"name": "probabilities", "datatype": "FP64", "shape": [-1, len(target.classes)]},
            ]
        case "clustering":
            return [{"name": "cluster", "datatype": "INT64", "shape": [-1]}]
        case _:
            return [{"name": "score", "datatype": "FP64", "shape": [-1]}]


def tensors_of(answers: Sequence[Answer], target: Target, wanted: object) -> list[Tensor]:
    """The answers as output tensors, those in `wanted` (the request's `outputs`) or all. Raises `Invalid`."""
    offered = outputs_of(target)
    names = [tensor["name"] for tensor in offered]
    chosen = names if wanted is None else wanted_names(wanted, names)
    rows = len(answers)
    tensors: list[Tensor] = []
    for meta in offered:
        if meta["name"] not in chosen:
            continue
        width = meta["shape"][1:]
        if meta["name"] == "probabilities":
            data: list[Any] = [a.probabilities.get(c, 0.0) for a in answers for c in target.classes]
        elif meta["name"] == "cluster":
            data = [int(a.value) for a in answers]
        else:
            data = [a.value for a in answers]
        tensors.append({"name": meta["name"], "shape": [rows, *width], "datatype": meta["datatype"], "data": data})
    return tensors


def wanted_names(wanted: object, offered: Sequence[str]) -> list[str]:
    """The names in a request's `outputs`. Raises `Invalid`."""
    if not isinstance(wanted, list):
        raise Invalid("outputs", "a list is expected", fix='[{"name": "probabilities"}]')
    names: list[str] = []
    for index, output in enumerate(wanted):
        name = output.get("name") if isinstance(output, Mapping) else None
        if not isinstance(name, str):
            raise Invalid(f"outputs[{index}].name", "a text is expected")
        if name not in offered:
            raise unknown(f"outputs[{index}].name", "output", name, offered)
        names.append(name)
    return names or list(offered)


def _checked(tensor: object, where: str) -> tuple[str, list[int], list[Any]]:
    if not isinstance(tensor, Mapping):
        raise Invalid(where, "a tensor is an object with name, shape, datatype and data")
    name, datatype = tensor.get("name"), tensor.get("datatype")
    if not isinstance(name, str):
        raise Invalid(f"{where}.name", "a text is expected")
    shape = _shape(tensor.get("shape"), f"{where}.shape")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise unknown(f"{where}.datatype", "datatype", datatype, DATATYPES)
    if not isinstance(tensor.get("data"), list):
        raise Invalid(f"{where}.data", "a list is expected")
    data = _flat(tensor["data"], len(shape), f"{where}.data")
    if len(data) != math.prod(shape):
        raise Invalid(f"{where}.data", f"{len(data)} values, but the shape {shape} has {math.prod(shape)}")
    for index, value in enumerate(data):
        if value is not None:
            _check_value(value, datatype, f"{where}.data[{index}]")
    return name, shape, data


def _shape(shape: object, where: str) -> list[int]:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise Invalid(where, "a list of whole numbers is expected", fix="for example [1, 1]")
    if len(shape) > _MAX_DIMENSIONS:
        raise Invalid(where, f"{len(shape)} dimensions are too many")
    return shape


def _flat(data: list[Any], depth: int, where: str) -> list[Any]:
    """`data` without its nesting, which may not be deeper than the shape."""
    for _ in range(depth):
        if not any(isinstance(part, list) for part in data):
            return data
        if not all(isinstance(part, list) for part in data):
            raise Invalid(where, "some parts are nested and some are not")
        data = [value for part in data for value in part]
    if any(isinstance(part, list) for part in data):
        raise Invalid(where, "is nested more deeply than its shape")
    return data


def _check_value(value: object, datatype: str, where: str) -> None:
    if datatype in _FLOATS:
        fits = type(value) is float or type(value) is int
    elif datatype == "BYTES":
        fits = isinstance(value, str)
    elif datatype == "BOOL":
        fits = isinstance(value, bool)
    else:
        low, high = _INTEGERS[datatype]
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    if not fits:
        raise Invalid(where, f"{value!r:.40} is no {datatype}")


def _is_packed(tensor: tuple[str, list[int], list[Any]], signature: Signature) -> bool:
    name, shape, _ = tensor
    return name not in signature.names and (len(shape) == 2 or len(signature.names) == 1)


def _packed(tensor: tuple[str, list[int], list[Any]], signature: Signature, most: int) -> list[dict[str, Any]]:
    name, shape, data = tensor
    width = len(signature.names)
    if len(shape) != 2 or shape[1] != width:
        raise Invalid(
            f"inputs.{name}",
            f"its shape is {shape}",
            fix=f"a packed tensor is [rows, {width}], the columns in the order of the model's metadata",
        )
    text = next((c.name for c in signature.columns if c.kind == "category"), None)
    if text is not None and not all(value is None or isinstance(value, str) for value in data):
        raise Invalid(f"inputs.{name}", f"'{text}' is a category", fix="send one tensor per column")
    _check_rows(shape[0], most)
    return [dict(zip(signature.names, data[at : at + width], strict=True)) for at in range(0, len(data), width)]


def _check_rows(rows: int, most: int) -> None:
    if not 1 <= rows <= most:
        raise Invalid("inputs", f"{rows} rows", fix=f"between 1 and {most}; score more as a batch")
