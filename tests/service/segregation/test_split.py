"""A feature set becomes two parts: which rows, how often, and what cannot be split."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from environment import published, running, wait_for
from splitting import Splitter

from turnout.common.errors import Invalid
from turnout.common.events import DataSegregated, DataSetRef, StageFailed, Target
from turnout.common.runtime.environment import Environment
from turnout.segregation import parts
from turnout.segregation.service import build

STRATEGIES = {
    "sequential": "{strategy: sequential}",
    "random": "{strategy: random}",
    "random by class": "{strategy: random, stratify: true}",
    "shuffled": "{strategy: shuffled}",
    "stratified": "{strategy: stratified}",
    "time": "{strategy: time}",
    "custom column": "{strategy: custom, column: fold}",
    "custom function": "{strategy: custom, function: 'users_split:odd'}",
}


@pytest.fixture(autouse=True)
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_split.py").write_text(
        "import numpy as np\n"
        "def odd(table):\n    return table['_row'].to_numpy() % 2 == 1\n"
        "def wrong(table):\n    return 'train'\n"
        "def broken(table):\n    raise KeyError('no such column')\n"
        "number = 3\n"
    )
    (tmp_path / "users_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("users_split", "users_broken"):
        sys.modules.pop(name, None)


def key(row: dict[str, Any]) -> tuple[str, int]:
    return row["_batch"], row["_row"]


@pytest.mark.parametrize("name", STRATEGIES)
async def test_every_row_is_in_one_part_whole(splitter: Splitter, name: str) -> None:
    await splitter.declare(STRATEGIES[name])
    cause = splitter.lay()
    made = await splitter.split(cause)
    train, test = splitter.rows(made)
    whole = splitter.environment.lake.read(cause.data).to_pylist()
    assert sorted(train + test, key=key) == sorted(whole, key=key)
    assert [(part.name, part.rows) for part in made.parts] == [("train", len(train)), ("test", len(test))]
    assert (made.feature_set_id, made.plan, made.target) == (cause.feature_set_id, cause.plan, cause.target)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "shuffled"])
async def test_rows_keep_the_sets_order(splitter: Splitter, name: str) -> None:
    await splitter.declare(STRATEGIES[name])
    for part in splitter.rows(await splitter.split(splitter.lay())):
        assert [key(row) for row in part] == sorted(key(row) for row in part)


@pytest.mark.parametrize("gathered", [500_000, 37])
async def test_shuffled_writes_its_own_order_however_it_is_gathered(
    splitter: Splitter, monkeypatch: pytest.MonkeyPatch, gathered: int
) -> None:
    await splitter.declare("{strategy: shuffled, seed: 5}")
    monkeypatch.setattr(parts, "GATHERED", gathered)
    train, test = splitter.rows(await splitter.split(splitter.lay()))
    assert (len(train), len(test)) == (320, 80)
    names = [("b1", row) for row in range(2, 202)] + [("b2", row) for row in range(2, 202)]
    order = [names[index] for index in np.random.default_rng(5).permutation(400)]
    assert [key(row) for row in train] == order[:320]
    assert [key(row) for row in test] == order[320:]


async def test_again_for_the_same_cause_is_the_same_event(splitter: Splitter) -> None:
    await splitter.declare("{}")
    cause = splitter.lay()
    assert await splitter.split(cause) == await splitter.split(cause)


async def test_another_cause_with_the_same_content_tells_of_the_same_split(splitter: Splitter) -> None:
    await splitter.declare("{}")
    cause = splitter.lay()
    first = await splitter.split(cause)
    second = await splitter.split(cause.model_copy(update={"id": "another", "train": True, "spec_id": "spec-2"}))
    assert second.id != first.id
    assert (second.train, second.spec_id, second.causation_id) == (True, "spec-2", "another")
    assert (second.split_id, second.parts) == (first.split_id, first.parts)
    assert len(list(splitter.environment.lake.manifests("split", "p"))) == 3


async def test_the_options_name_the_split(splitter: Splitter) -> None:
    cause, ids = splitter.lay(), set[str]()
    for options in ("{}", "{seed: 1}", "{ratio: 0.5}", "{strategy: time}"):
        await splitter.declare(options)
        ids.add((await splitter.split(cause)).split_id)
    assert len(ids) == 4


async def test_the_event_lies_in_the_splits_manifest(splitter: Splitter) -> None:
    await splitter.declare("{}")
    made = await splitter.split(splitter.lay())
    lake = splitter.environment.lake
    manifest = lake.manifest(DataSetRef(kind="split", pipeline="p", id=made.split_id))
    assert manifest is not None
    assert manifest.event is not None
    assert DataSegregated.model_validate_json(manifest.event) == made
    assert [part.id for part in manifest.parts] == [f"{made.split_id}-train", f"{made.split_id}-test"]
    assert manifest.files == ()


async def test_after_a_crash_between_the_parts_only_what_is_missing_is_written(splitter: Splitter) -> None:
    await splitter.declare("{}")
    cause = splitter.lay()
    made = await splitter.split(cause)
    whole = splitter.rows(made)
    home, lake = splitter.environment.home, splitter.environment.lake
    kept = lake.manifest(made.parts[0].data)
    for gone in (made.split_id, f"{made.split_id}-test"):
        (next(home.glob(f"lake/split/p/{gone}")) / "manifest.json").unlink()
    again = await splitter.split(cause)
    assert again.model_dump(exclude={"time"}) == made.model_dump(exclude={"time"})
    assert splitter.rows(again) == whole
    assert lake.manifest(made.parts[0].data) == kept


async def test_parts_that_look_different_are_named(splitter: Splitter) -> None:
    await splitter.declare("{strategy: sequential}")
    rows = 1_000
    made = await splitter.split(
        splitter.lay(
            rows, x=[i / rows for i in range(rows)], colour=["red" if i < 800 else "blue" for i in range(rows)]
        )
    )
    assert {(w.code, w.column) for w in made.warnings} == {("parts_differ", "x"), ("parts_differ", "colour")}
    await splitter.declare("{}")
    assert (await splitter.split(splitter.lay(rows, "fs-2"))).warnings == ()


async def test_without_a_label(splitter: Splitter) -> None:
    await splitter.declare("{}", task="clustering")
    cause = splitter.lay(_label=None).model_copy(update={"target": Target(task="clustering")})
    train, test = splitter.rows(await splitter.split(cause))
    assert len(train) + len(test) == 400


async def test_a_set_that_only_makes_features_ends_here(splitter: Splitter) -> None:
    cause = splitter.lay().model_copy(update={"target": Target(task="features")})
    assert await splitter.react(cause) == []


IMPOSSIBLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "one row": ("{}", {"rows": 1, "_label": ["no"], "_batch": ["b"], "_row": [1]}, "part is empty"),
    "one class in train": ("{strategy: sequential}", {"_label": ["no"] * 320 + ["yes"] * 80}, "one class only, no"),
    "time without times": ("{strategy: time}", {"_event_time": None}, "declare source.event_time"),
    "custom without its column": ("{strategy: custom, column: fold}", {"_fold": None}, "lacks 'fold'"),
    "a word that is no part": ("{strategy: custom, column: fold}", {"_fold": ["validate"] * 400}, "says 'validate'"),
    "no module": ("{strategy: custom, function: 'no_such_module:f'}", {}, "cannot import no_such_module"),
    "a broken module": ("{strategy: custom, function: 'users_broken:f'}", {}, "raised ZeroDivisionError"),
    "no function": ("{strategy: custom, function: 'users_split:od'}", {}, "did you mean 'odd'"),
    "not a function": ("{strategy: custom, function: 'users_split:number'}", {}, "is a int; name a function"),
    "no path": ("{strategy: custom, function: 'odd'}", {}, "is no import path"),
    "a path with code in it": ("{strategy: custom, function: 'os;x:y'}", {}, "is no import path"),
    "a wrong answer": ("{strategy: custom, function: 'users_split:wrong'}", {}, "return 400 booleans"),
    "a function that fails": ("{strategy: custom, function: 'users_split.broken'}", {}, "raised KeyError"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
async def test_what_cannot_be_split_says_why_and_leaves_nothing(splitter: Splitter, case: str) -> None:
    options, given, says = IMPOSSIBLE[case]
    columns = dict(given)
    await splitter.declare(options)
    if case == "one row":
        columns |= {name: [None] for name in ("_event_time", "_entity", "_fold", "x", "colour", "in:x")}
    with pytest.raises(Invalid, match=says):
        await splitter.split(splitter.lay(**columns))
    assert not list(splitter.environment.lake.manifests("split", "p"))


async def test_on_the_bus_with_worker_processes(environment: Environment) -> None:
    splitter = Splitter(environment)
    await splitter.declare("{}")
    good = splitter.lay()
    bad = splitter.lay(ident="fs-2", _label=["no"] * 400)
    async with running(environment, build(environment)):
        await environment.bus.publish(bad, good)
        made = await wait_for(environment.bus, DataSegregated)
        failed = await wait_for(environment.bus, StageFailed)
    assert made.causation_id == good.id
    assert "one class only" in failed.error
    assert len(await published(environment.bus, DataSegregated)) == 1
