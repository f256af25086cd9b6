"""The trial of a version, on real files in a real process."""

from __future__ import annotations

import pickle
import re

import graphs
import pytest
from builders import COLUMNS

from turnout.common.events import Column, Target
from turnout.scoring.adapters.admission import TrialProcess
from turnout.scoring.ports import Admitted, Refused

MIB = 1024 * 1024


def trial(**options: float) -> TrialProcess:
    return TrialProcess(**{"seconds": 10.0, "memory": 1024 * MIB, "size": 16 * MIB, **options})  # type: ignore[arg-type]


async def test_a_good_version_is_admitted_with_its_time() -> None:
    verdict = await trial().admit(*graphs.lying(graphs.good()))
    assert isinstance(verdict, Admitted)
    assert 0 < verdict.milliseconds < 50


@pytest.mark.parametrize(
    "content",
    [graphs.slow(), graphs.raising(), graphs.not_a_number(), graphs.misshapen(), graphs.hungry()],
    ids=["slow", "raising", "nan", "misshapen", "hungry"],
)
async def test_a_version_that_is_tame_on_its_sample_is_admitted(content: bytes) -> None:
    assert isinstance(await trial().admit(*graphs.lying(content)), Admitted)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("/tmp/turnout-test-marker", "w"))


REFUSED = {
    "an endless loop": (graphs.endless(), {}, "took longer"),
    "8 GB": (graphs.hungry(always=True), {}, "memory in the operator ConstantOfShape; a version may have 1024 MiB"),
    "external data": (graphs.external("weights.bin"), {}, "outside of its file"),
    "external data elsewhere": (graphs.external("/etc/passwd"), {}, "outside of its file"),
    "a foreign operator": (graphs.foreign_operator(), {}, "my.company"),
    "garbage": (b"\x00\xff" * 500, {}, "no ONNX model"),
    "nothing": (b"", {}, "no ONNX model"),
    "a pickle": (pickle.dumps(Bomb()), {}, "no ONNX model"),
    "half a file": (graphs.good()[:200], {}, "no ONNX model|checker|onnxruntime|ended the process"),
    "too slow": (graphs.slow(), {"sample": ({"age": 102.0, "colour": "red"},), "slo_ms": 5.0}, "the SLO is 5 ms"),
    "NaN on its sample": (graphs.not_a_number(), {"sample": ({"age": 200.0},)}, "nan"),
    "raising on its sample": (graphs.raising(), {"sample": ({"age": 200.0},)}, "the operator Gather fails: indices"),
    "another shape": (graphs.misshapen(), {"sample": ({"age": 102.0},)}, r"expected \[\d+, 2\]"),
    "an input too many": (graphs.good(), {"inputs": (Column(name="age", kind="number"),)}, "wants an input 'colour'"),
    "an input too few": (
        graphs.good(),
        {"inputs": (*COLUMNS, Column(name="z", kind="number"))},
        "no input 'z'",
    ),
    "another kind": (
        graphs.good(),
        {"inputs": (Column(name="age", kind="category"), Column(name="colour", kind="category"))},
        "input 'age' is",
    ),
    "another task": (graphs.good(), {"target": Target(task="regression", label="y")}, "the outputs are"),
    "a sample that does not fit": (graphs.good(), {"sample": ({"age": "old"},)}, "sample row"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_a_bad_file_is_refused_and_the_reason_said(case: str) -> None:
    content, fields, why = REFUSED[case]
    verdict = await trial().admit(*graphs.lying(content, **fields))
    assert isinstance(verdict, Refused), verdict

    assert re.search(why, verdict.why), verdict.why


async def test_a_file_that_is_not_what_the_event_says_is_refused() -> None:
    ready, _ = graphs.lying(graphs.good())
    verdict = await trial().admit(ready, graphs.good(bias=1.0))
    assert verdict == Refused("the file is not what its sha256 says")


async def test_a_file_that_is_too_large_is_refused_before_it_is_read() -> None:
    verdict = await trial(size=100).admit(*graphs.lying(graphs.good()))
    assert isinstance(verdict, Refused)
    assert "bytes" in verdict.why
