"""The Open Inference Protocol, version 2: shapes of requests and replies, errors as `{"error": …}`."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import builders
import graphs
import pytest
from environment import published
from scoring_stand import Stand, file

from turnout.common.events import Column, ScoreProduced, Target
from turnout.scoring.domain import tensors
from turnout.scoring.domain.signature import Signature

AGE = {"name": "age", "shape": [2, 1], "datatype": "FP64", "data": [40.0, 60.0]}
COLOUR = {"name": "colour", "shape": [2], "datatype": "BYTES", "data": ["red", "blue"]}


async def infer(stand: Stand, path: str = "/v2/models/p/infer", **body: Any) -> dict[str, Any]:
    reply = await stand.client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def test_health_and_metadata(stand: Stand) -> None:
    get = stand.client.get
    assert (await get("/v2/health/live")).json() == {"live": True}
    assert (await get("/v2/health/ready")).json() == {"ready": True}
    server = (await get("/v2")).json()
    assert (server["name"], server["extensions"]) == ("turnout", ["router", "outcomes"])
    model = (await get("/v2/models/p")).json()
    assert model == {
        "name": "p",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [
            {"name": "age", "datatype": "FP64", "shape": [-1, 1]},
            {"name": "colour", "datatype": "BYTES", "shape": [-1, 1]},
        ],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP64", "shape": [-1, 2]},
        ],
    }
    assert (await get("/v2/models/p/versions/1")).json() == model
    for path in ("/v2/models/p/ready", "/v2/models/p/versions/1/ready"):
        reply = await get(path)
        assert (reply.status_code, reply.json()) == (200, {"name": "p", "ready": True})
    for path in ("/v2/models/q", "/v2/models/q/ready", "/v2/models/p/versions/7", "/v2/models/p/versions/7/ready"):
        reply = await get(path)
        assert reply.status_code == 404
        assert list(reply.json()) == ["error"]


async def test_infer_echoes_the_id_and_accounts_for_the_router(stand: Stand) -> None:
    reply = await infer(stand, id="abc", inputs=[AGE, COLOUR], parameters={"timeout": 900_000, "priority": 1})
    assert (reply["model_name"], reply["model_version"], reply["id"]) == ("p", "1", "abc")
    label, probabilities = reply["outputs"]
    assert label == {"name": "label", "shape": [2], "datatype": "BYTES", "data": ["yes", "yes"]}
    assert (probabilities["shape"], probabilities["datatype"]) == ([2, 2], "FP64")
    first, second = 1 / (1 + math.exp(-1.4)), 1 / (1 + math.exp(-0.6))
    assert probabilities["data"] == pytest.approx([1 - first, first, 1 - second, second], abs=1e-6)
    parameters = reply["parameters"]
    assert all(isinstance(value, str | bool | int | float) for value in parameters.values())
    assert (parameters["served_by"], parameters["fallback"], parameters["attempted"]) == ("champion", False, "1")
    ids = parameters["score_id"].split(",")
    assert len(ids) == 2
    assert (await stand.client.get(f"/scores/{ids[1]}")).json()["value"] == "yes"


async def test_infer_takes_nested_data_integers_and_chosen_outputs(stand: Stand) -> None:
    ages = {"name": "age", "shape": [2, 1], "datatype": "INT8", "data": [[40], [60]]}
    reply = await infer(stand, inputs=[ages], outputs=[{"name": "label"}])
    assert [output["name"] for output in reply["outputs"]] == ["label"]
    reply = await infer(stand, "/v2/models/p/versions/1/infer", inputs=[AGE])
    assert reply["parameters"]["requested_version"] == "1"
    assert reply["parameters"]["served_by"] == "pinned"
    assert "id" not in reply


async def test_a_packed_tensor_and_a_regression(stand: Stand) -> None:
    await stand.environment.bus.publish(builders.declared(file(pipeline="r")))
    await stand.give(
        graphs.regression(), "1", pipeline="r", target=Target(task="regression", label="y"), sample=({"age": 1.0},)
    )
    await stand.environment.bus.publish(builders.routing(1, "1", pipeline="r"))
    async with asyncio.timeout(60):
        while (await stand.client.get("/v2/models/r/ready")).status_code != 200:
            await asyncio.sleep(0.02)
    packed = {"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": ["21", "red"]}
    reply = await infer(stand, "/v2/models/r/infer", inputs=[packed])
    assert reply["outputs"] == [{"name": "score", "shape": [1], "datatype": "FP64", "data": [42.0]}]


BAD: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "inputs"),
    "no tensors": ({"inputs": []}, "inputs"),
    "a tensor that is none": ({"inputs": [1]}, "inputs[0]"),
    "no name": ({"inputs": [{**AGE, "name": 1}]}, "name"),
    "an unknown input": ({"inputs": [{**AGE, "name": "agee", "shape": [2]}]}, "did you mean 'age'?"),
    "an unknown datatype": ({"inputs": [{**AGE, "datatype": "FP46"}]}, "did you mean 'FP64'?"),
    "another shape": ({"inputs": [{**AGE, "shape": [3, 1]}]}, "2 values, but the shape [3, 1] has 3"),
    "a negative shape": ({"inputs": [{**AGE, "shape": [-1, 1]}]}, "shape"),
    "two columns in one": ({"inputs": [{**AGE, "shape": [1, 2]}]}, "one column is"),
    "text as numbers": ({"inputs": [{**AGE, "data": ["a", "b"]}]}, "is no FP64"),
    "an integer too large": ({"inputs": [{**AGE, "datatype": "INT8", "data": [1, 300]}]}, "300 is no INT8"),
    "true as an integer": ({"inputs": [{**AGE, "datatype": "INT8", "data": [1, True]}]}, "True is no INT8"),
    "data nested too deeply": ({"inputs": [{**AGE, "data": [[[[1]]], [[[2]]]]}]}, "nested"),
    "half nested data": ({"inputs": [{**AGE, "data": [[1], 2]}]}, "nested"),
    "the same input twice": ({"inputs": [AGE, AGE]}, "twice"),
    "different numbers of rows": ({"inputs": [AGE, {**COLOUR, "shape": [1], "data": ["red"]}]}, "different numbers"),
    "too many rows": ({"inputs": [{**AGE, "shape": [1001, 1], "data": [1.0] * 1001}]}, "1001 rows"),
    "an unknown output": ({"inputs": [AGE], "outputs": [{"name": "labels"}]}, "did you mean 'label'?"),
    "a list as a parameter": ({"inputs": [AGE], "parameters": {"x": [1]}}, "parameters.x"),
    "an id that is no text": ({"inputs": [AGE], "id": 3}, "id"),
    "a time limit below zero": ({"inputs": [AGE], "parameters": {"timeout": -1}}, "parameters.timeout"),
    "numbers packed for a category": (
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}]},
        "'colour' is a category",
    ),
}


async def test_bad_tensors_are_answered_with_the_protocols_error(stand: Stand) -> None:
    for case, (body, words) in BAD.items():
        reply = await stand.client.post("/v2/models/p/infer", json=body)
        assert reply.status_code == 422, (case, reply.text)
        assert list(reply.json()) == ["error"]
        assert words in reply.json()["error"], (case, reply.json())
    reply = await stand.client.post("/v2/models/p/infer", content="{", headers={"content-type": "application/json"})
    assert (reply.status_code, list(reply.json())) == (400, ["error"])
    assert await published(stand.environment.bus, ScoreProduced) == []


async def test_the_router_is_readable(stand: Stand) -> None:
    row = await stand.one()
    found = await stand.router()
    assert found["chain"] == ["1", "baseline"]
    assert found["table"]["champion"] == "1"
    (version,) = found["versions"]
    assert (version["state"], version["role"], version["runs"]) == ("on", "champion", "apart")
    assert found["decisions"][0]["score_id"] == row["score_id"]


def test_columns_are_described_by_their_kind() -> None:
    shown = tensors.inputs_of(Signature([Column(name="at", kind="timestamp")]))
    assert shown == [{"name": "at", "datatype": "FP64", "shape": [-1, 1]}]
