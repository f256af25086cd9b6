"""A pipeline file for data that nobody described yet: what `turnout init` writes, with its reasons as comments."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from turnout.common.errors import Invalid, Unknown
from turnout.common.pipeline import Source, Task
from turnout.common.values import Kind, number
from turnout.ingestion.domain.convert import convert
from turnout.ingestion.domain.schema import infer

# How other programs write that a value is missing; proposed only where it is all that keeps a column from numbers.
MISSING_MARKS = ("?", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "-", ".")
_MOST_CLASSES = 20
_FEW_ROWS = 20
_MOST_TEXTS = 50
# A value that goes with one class this often, seen this often, while the class is rare elsewhere, knows the answer.
_PURE, _SUPPORT, _RARE = 0.98, 15, 0.5
# One column whose order gives the label away: area under the ROC curve, or correlation of ranks.
_TELLING_AREA, _TELLING_RANK = 0.995, 0.995
# Below 1: a total often holds a small charge that is no column, and the whole is still given away.
_TELLING_TOGETHER = 0.85
_IMBALANCED = 0.1

CANDIDATES: Mapping[str, Sequence[str]] = {
    "classification": ("logistic_regression", "random_forest", "gradient_boosting"),
    "regression": ("ridge", "random_forest", "gradient_boosting"),
}


@dataclass(frozen=True)
class Proposal:
    """What was found out about the data; `render` makes a pipeline file of it."""

    task: Task
    label: str
    kinds: Mapping[str, Kind]
    classes: Mapping[str, int]
    null_values: Sequence[str]
    drops: Mapping[str, str]
    metric: str
    notes: Sequence[str] = field(default_factory=list)


def propose(sample: Mapping[str, pa.Array], label: str, task: Task | None) -> Proposal:
    """Look at the first rows. Raises `Unknown` for a label that is no column, `Invalid` for one that says nothing."""
    if label not in sample:
        raise Unknown.name("--label", "column", label, sample)
    marks = missing_marks(sample)
    kinds: dict[str, Kind] = {name: infer(cells, name, marks) or "category" for name, cells in sample.items()}
    columns = {name: convert(cells, kinds[name], name, marks).values for name, cells in sample.items()}
    known = pc.is_valid(columns[label])
    columns = {name: cells.filter(known) for name, cells in columns.items()}
    task = task or _task(columns[label], kinds[label], label)
    if task == "classification":
        kinds[label] = "category"
        columns[label] = convert(columns[label], "category", label).values
    classes = _counts(columns[label]) if task == "classification" else {}
    _check_label(columns[label], label, task, classes)
    others = {name: cells for name, cells in columns.items() if name != label}
    drops = {name: why for name, cells in others.items() if (why := _identifies(cells, kinds[name]))}
    left = {name: cells for name, cells in others.items() if name not in drops}
    leaks = {name: why for name, cells in left.items() if (why := _knows(cells, kinds[name], columns[label], task))}
    notes: list[str] = []
    if task == "regression":
        numbers = {n: c for n, c in left.items() if n not in leaks and kinds[n] == "number"}
        notes += _together(numbers, columns[label], label)
    return Proposal(task, label, kinds, classes, marks, {**drops, **leaks}, _metric(task, classes), notes)


def missing_marks(sample: Mapping[str, pa.Array]) -> list[str]:
    """The marks that stand for missing numbers: in a column of numbers, and nothing else in it is no number."""
    found: set[str] = set()
    for cells in sample.values():
        if not (pa.types.is_binary(cells.type) or pa.types.is_string(cells.type)):
            continue
        texts = _counts(convert(cells, "category", "").values)
        strange = {text for text in texts if not _is_number(text)}
        marks = strange & set(MISSING_MARKS)
        if marks and strange == marks and len(texts) > len(marks):
            found |= marks
    return sorted(found)


def render(proposal: Proposal, *, name: str, uri: str, source: Source, title: str) -> str:
    """The pipeline file (YAML)."""
    lines = [
        f"# {title}",
        f"pipeline: {name}",
        f"task: {proposal.task}",
        "source:",
        f"  uri: {_quoted(uri)}   # a file, a folder or a glob",
    ]
    if source.columns:
        lines.append(f"  columns: [{', '.join(map(_quoted, source.columns))}]   # the file has no header line")
    if source.delimiter:
        lines.append(f"  delimiter: {_quoted(source.delimiter)}")
    if proposal.null_values:
        lines.append(f"  null_values: [{', '.join(map(_quoted, proposal.null_values))}]   # these mean: missing")
    lines.append(f"  label: {_quoted(proposal.label)}{_classes_comment(proposal)}")
    times = [column for column, kind in proposal.kinds.items() if kind == "timestamp"]
    if times:
        lines.append(f"  # event_time: {_quoted(times[0])}   # uncomment if this is when a row was measured")
    lines.append("  # entity: …   # the column that names what a row is about, if its newest values shall be kept")
    lines += ["schema:   # inferred from the first rows; a row that does not fit goes to quarantine"]
    lines += [f"  {_quoted(column)}: {kind}" for column, kind in proposal.kinds.items()]
    lines += [f"# {note}" for note in proposal.notes]
    lines += _steps(proposal)
    if proposal.task in CANDIDATES:
        stratify = ", stratify: true" if proposal.task == "classification" else ""
        lines += [
            f"segregation: {{strategy: random, ratio: 0.8, seed: 0{stratify}}}",
            "training:",
            "  candidates:",
            *(f"    - {{algorithm: {algorithm}}}" for algorithm in CANDIDATES[proposal.task]),
            f"evaluation: {{metric: {proposal.metric}}}",
        ]
    return "\n".join(lines) + "\n"


def slug(text: str) -> str:
    """A pipeline name from any text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63] or "pipeline"


def _steps(proposal: Proposal) -> list[str]:
    lines = ["preparation:"]
    if proposal.drops:
        lines += ["  - drop:", "      columns:   # look at the reasons; take a column out of this list to keep it"]
        lines += [f"        - {_quoted(column)}   # {why}" for column, why in proposal.drops.items()]
    left = {k for n, k in proposal.kinds.items() if n != proposal.label and n not in proposal.drops}
    if "number" in left:
        lines += ["  - impute: {columns: number, with: median}", "  - scale: {columns: number}"]
    if "category" in left:
        lines.append("  - encode: {columns: category}")
    return lines if len(lines) > 1 else []


def _classes_comment(proposal: Proposal) -> str:
    if not proposal.classes:
        return ""
    total = sum(proposal.classes.values())
    shown = sorted(proposal.classes.items(), key=lambda kv: -kv[1])[:5]
    return "   # " + ", ".join(f"{name}: {count / total:.1%}" for name, count in shown).replace("\n", " ")


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z][A-Za-z_]*", text) and text.lower() not in _YAML_WORDS else json.dumps(text)


# What YAML 1.1 takes for something other than a text.
_YAML_WORDS = {"y", "n", "yes", "no", "true", "false", "on", "off", "null"}


def _task(cells: pa.Array, kind: Kind, label: str) -> Task:
    if kind == "timestamp":
        raise Invalid("--label", f"'{label}' is a time; it cannot be predicted", fix="choose another column")
    if kind == "category":
        return "classification"
    values: NDArray[np.float64] = np.unique(cells.drop_null().to_numpy(zero_copy_only=False))
    return "classification" if len(values) <= _MOST_CLASSES and np.all(values == np.rint(values)) else "regression"


def _check_label(cells: pa.Array, label: str, task: Task, classes: Mapping[str, int]) -> None:
    distinct = pc.count_distinct(cells).as_py()
    if len(cells) == 0:
        raise Invalid("--label", f"'{label}' has no value in the first rows")
    if distinct == 1:
        raise Invalid("--label", f"'{label}' is always {cells[0].as_py()!r}", fix="choose a column that varies")
    if task == "regression" and not pa.types.is_floating(cells.type):
        raise Invalid("--task", f"'{label}' holds texts, a regression needs numbers", fix="--task classification")
    if task == "classification" and len(classes) > max(_MOST_CLASSES, len(cells) / 2):
        raise Invalid(
            "--label", f"'{label}' has {len(classes)} different values", fix="choose a column with few classes"
        )


def _identifies(cells: pa.Array, kind: Kind) -> str | None:
    """Why a column only names its rows."""
    distinct, rows = pc.count_distinct(cells).as_py(), len(cells)
    if distinct == 1 and cells.null_count == 0:
        return "it never changes"
    if rows < _FEW_ROWS:
        return None
    if kind == "category":
        if distinct >= 0.95 * rows:
            return "every row has its own: it names the row"
        return f"{distinct} different texts" if distinct > max(_MOST_TEXTS, rows / 2) else None
    if kind == "number" and distinct == rows:
        values = cells.to_numpy(zero_copy_only=False)
        if np.all(np.abs(np.diff(values)) == 1) and np.all(np.diff(values) == np.diff(values)[0]):
            return f"it counts the rows, from {values[0]:.0f}"
    return None


def _knows(cells: pa.Array, kind: Kind, label: pa.Array, task: Task) -> str | None:
    """Why a column may know the answer before it is given."""
    if task == "classification":
        return _gives_class(cells, label) or (_orders_classes(cells, label) if kind == "number" else None)
    if task == "regression" and kind == "number":
        both = pc.and_(pc.is_valid(cells), pc.is_valid(label))
        x, y = (_ranks(c.filter(both)) for c in (cells, label))
        if len(x) >= _FEW_ROWS and x.std() and abs(rank := float(np.corrcoef(x, y)[0, 1])) >= _TELLING_RANK:
            return f"it knows the answer: its order is the label's (rank correlation {rank:.4f})"
    return None


def _gives_class(cells: pa.Array, label: pa.Array) -> str | None:
    """A value of few that goes with one class nearly always, though the class is rare without it."""
    pairs = pa.table({"v": cells, "y": label}).group_by(["v", "y"]).aggregate([([], "count_all")]).to_pylist()
    of_value: dict[object, int] = {}
    for pair in pairs:
        of_value[pair["v"]] = of_value.get(pair["v"], 0) + pair["count_all"]
    if len(of_value) > _MOST_TEXTS:
        return None
    of_class, rows = _counts(label), len(label)
    for pair in sorted(pairs, key=lambda p: -p["count_all"]):
        value, name, together = pair["v"], pair["y"], pair["count_all"]
        seen = of_value[value]
        elsewhere = (of_class[name] - together) / max(rows - seen, 1)
        if value is None or seen < _SUPPORT or seen == rows:
            continue
        if together >= _PURE * seen and elsewhere < _RARE * of_class[name] / rows + 0.05 and of_class[name] < rows / 2:
            shown = f"{value:g}" if isinstance(value, float) else repr(value)
            return (
                f"it may know the answer: where it is {shown}, the label is {name!r} "
                f"in {together} of {seen} rows, elsewhere in {elsewhere:.1%}"
            )
    return None


def _orders_classes(cells: pa.Array, label: pa.Array) -> str | None:
    classes = sorted(_counts(label))
    both = pc.is_valid(cells)
    if len(classes) != 2 or pc.sum(both).as_py() < _FEW_ROWS:
        return None
    ranks = _ranks(cells.filter(both))
    positive = pc.equal(label.filter(both), classes[1]).to_numpy(zero_copy_only=False)
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return None
    area = (ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros)
    area = max(area, 1 - area)
    if area < _TELLING_AREA:
        return None
    return f"it knows the answer: alone it tells the classes apart (area under the curve {area:.4f})"


def _together(numbers: Mapping[str, pa.Array], label: pa.Array, name: str) -> list[str]:
    """A sum of columns that is the label, as a price is of its parts."""
    if not numbers:
        return []
    matrix = np.column_stack([pc.fill_null(c, 0.0).to_numpy(zero_copy_only=False) for c in numbers.values()])
    y = label.to_numpy(zero_copy_only=False)
    design = np.column_stack([matrix, np.ones(len(y))])
    weights = np.linalg.lstsq(design, y, rcond=None)[0]
    spread = ((y - y.mean()) ** 2).sum()
    share = 1 - ((y - design @ weights) ** 2).sum() / spread if spread else 0.0
    if share < _TELLING_TOGETHER or len(y) < _FEW_ROWS:
        return []
    weighty = np.abs(weights[:-1]) * matrix.std(axis=0) > 0.1 * y.std()
    told = ", ".join(column for column, heavy in zip(numbers, weighty, strict=True) if heavy)
    return [f"Together these give {name!r} almost (R² {share:.4f}): {told}. Are they known beforehand?"]


def _ranks(cells: pa.Array) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    values = cells.to_numpy(zero_copy_only=False)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


def _counts(cells: pa.Array) -> dict[str, int]:
    return {c["values"].as_py(): c["counts"].as_py() for c in pc.value_counts(cells.drop_null())}


def _metric(task: Task, classes: Mapping[str, int]) -> str:
    if task != "classification":
        return "rmse"
    if len(classes) > 2:
        return "log_loss"
    return "pr_auc" if min(classes.values()) < _IMBALANCED * sum(classes.values()) else "roc_auc"


def _is_number(text: str) -> bool:
    try:
        return number(text, "") is not None
    except Invalid:
        return False
