"""Splits as segregation leaves them: rows of a feature set in the lake, with a plan and a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import builders
import numpy as np
import pyarrow as pa

from turnout.common.events import Column, DataSegregated, DataSetRef, Plan, Step, Target
from turnout.common.lake.port import Lake

CLASSES = ("no", "yes")
TARGETS = {
    "classification": Target(task="classification", label="y", classes=CLASSES),
    "regression": Target(task="regression", label="y"),
    "clustering": Target(task="clustering"),
}
NUMBERS = ["age [years]", "a large one", "constant", 'the "score"']
TEXT = "colour, (of it)"
COLUMNS = (*(Column(name=name, kind="number") for name in NUMBERS), Column(name=TEXT, kind="category"))


def step(name: str, **options: Any) -> Step:
    """A step; `with_` is `with`."""
    return Step(name=name, options={key.rstrip("_"): value for key, value in options.items()})


FILLED = (
    step("impute", columns=NUMBERS, with_="median", value=None),
    step("impute", columns=[TEXT], with_="constant", value="missing"),
)
ENCODED = step("encode", columns=[TEXT], by="one_hot", max_categories=50)
SCALED = step("scale", columns=NUMBERS, by="standard")
PLAN = Plan(inputs=COLUMNS, features=COLUMNS, learned=(*FILLED, SCALED, ENCODED))
# A column near 5e8 as it is: in FP32 its neighbours are 32 apart.
UNSCALED = Plan(inputs=COLUMNS, features=COLUMNS, learned=(*FILLED, ENCODED))


def rows(task: str = "classification", count: int = 200, *, seed: int = 0, missing: float = 0.1) -> pa.Table:
    """Rows over `COLUMNS` with a label that can be learned, holes in them, and strange names."""
    draw = np.random.default_rng(seed)
    age, large = draw.normal(50, 12, count), 5e8 + draw.normal(0, 1e3, count)
    score, colour = draw.exponential(1, count), draw.choice(["red", "green", "blå", "日本"], count)
    told = (age - 50) / 12 + (colour == "red") + (large - 5e8) / 2e3 + draw.normal(0, 0.4, count)
    label = {
        "classification": np.where(told > np.median(told), "yes", "no"),
        "regression": 1e5 * told,
        "clustering": np.full(count, None),
    }[task]
    columns: dict[str, Any] = {
        name: pa.array(values, mask=draw.random(count) < missing)
        for name, values in zip([*NUMBERS, TEXT], [age, large, np.full(count, 3.0), score, colour], strict=True)
    }
    columns |= {"_label": pa.array(label), "_batch": pa.array(["batch-1"] * count)}
    columns |= {"_row": pa.array(np.arange(1, count + 1))}
    if task == "clustering":
        del columns["_label"]
    return pa.table(columns)


def keep(lake: Lake, table: pa.Table, ref: DataSetRef, **commit: Any) -> None:
    """Write a table as a data set."""
    with lake.writer(ref, table.schema) as writer:
        writer.write(table)
        writer.commit(lineage={}, at=builders.AT, **commit)


def segregated(
    lake: Lake,
    table: pa.Table,
    *,
    split_id: str = "split-1",
    plan: Plan = PLAN,
    task: str = "classification",
    share: float = 0.75,
    refs: Sequence[str] = ("train", "test"),
    **fields: Any,
) -> DataSegregated:
    """The split of a table in the lake, with its event in the manifest as segregation leaves it."""
    cut = int(table.num_rows * share)
    pipeline = fields.get("pipeline", "p")
    for name, part in zip(refs, (table.slice(0, cut), table.slice(cut)), strict=True):
        keep(lake, part, DataSetRef(kind="split", pipeline=pipeline, id=f"{split_id}-{name}"))
    parts = builders.split_parts(split_id, train=cut, test=table.num_rows - cut)
    event = builders.segregated(
        **{"split_id": split_id, "plan": plan, "target": TARGETS[task], "parts": parts, **fields}
    )
    ref = DataSetRef(kind="split", pipeline=pipeline, id=split_id)
    with lake.writer(ref, table.schema) as writer:
        writer.commit(lineage={}, at=event.time, event=event, parts=[part.data for part in parts])
    return event
