"""Write a heart clinic's examinations as a CSV file: the 13 features of UCI's Heart Disease set, made up here.

    python examples/bracelet/make_data.py FOLDER [--hospital cleveland|hungary] [--patients 400] [--seed 7]

No row is anybody's. A hidden burden of heart and vessels moves the findings and the diagnosis `num` (0: healthy,
1 to 4: how many vessels are narrowed), so that a model has something to find. A hospital has patients and habits of
its own: Hungary's are ten years younger and fewer are sick, and it hardly ever looks for `ca` and `thal`, seldom for
`slope`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FEATURES = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal",
)  # fmt: skip
LABEL = "num"
Cell = float | int | None
Column = NDArray[np.float64]


@dataclass(frozen=True)
class Hospital:
    """Who comes, and what is looked at: mean age in years, the log odds of being sick at that age, and the share of
    patients of whom a finding is missing."""

    age: float
    odds: float
    missing: Mapping[str, float] = field(default_factory=dict)


HOSPITALS = {
    "cleveland": Hospital(age=56, odds=-0.2, missing={"ca": 0.01, "thal": 0.01}),
    "hungary": Hospital(age=46, odds=-0.9, missing={"ca": 0.99, "thal": 0.9, "slope": 0.65, "chol": 0.08, "fbs": 0.03}),
}


def patients(count: int, hospital: str = "cleveland", seed: int = 7) -> list[dict[str, Cell]]:
    """`count` examinations with their diagnosis; the same for the same seed."""
    at = HOSPITALS[hospital]
    draw = np.random.default_rng([seed, sorted(HOSPITALS).index(hospital)])
    age = np.clip(np.round(draw.normal(at.age, 9, count)), 28, 80)
    man = draw.random(count) < 0.68
    burden = draw.normal(0, 1, count) + 0.06 * (age - at.age) + 0.8 * (man - 0.68)
    sick = draw.random(count) < 1 / (1 + np.exp(-(at.odds + 1.4 * burden)))
    columns: dict[str, Column] = {
        "age": age,
        "sex": man.astype(float),
        "cp": _choice(draw, sick, [0.11, 0.25, 0.40, 0.24], [0.05, 0.07, 0.14, 0.74]),
        "trestbps": np.round(np.clip(draw.normal(118 + 0.25 * age + 2 * burden, 15), 90, 200)),
        "chol": np.round(np.clip(draw.normal(205 + 0.8 * age + 4 * burden, 48), 110, 570)),
        "fbs": (draw.random(count) < 0.15).astype(float),
        "restecg": _choice(draw, sick, [0.55, 0.01, 0.44], [0.42, 0.02, 0.56], first=0),
        "thalach": np.round(np.clip(draw.normal(203 - 0.85 * age - 14 * sick - 3 * burden, 16), 70, 205)),
        "exang": (draw.random(count) < np.where(sick, 0.55, 0.14)).astype(float),
        "oldpeak": np.round(np.clip(draw.exponential(np.where(sick, 1.6, 0.6)), 0, 6.2), 1),
        "slope": _choice(draw, sick, [0.65, 0.30, 0.05], [0.26, 0.66, 0.08]),
        "ca": _choice(draw, sick, [0.80, 0.13, 0.04, 0.03], [0.33, 0.31, 0.22, 0.14], first=0),
        "thal": np.array([3.0, 6.0, 7.0])[
            _choice(draw, sick, [0.79, 0.04, 0.17], [0.27, 0.09, 0.64], first=0).astype(int)
        ],
        LABEL: np.where(sick, 1 + draw.binomial(3, 1 / (1 + np.exp(1.2 - 0.6 * burden))), 0).astype(float),
    }
    for name, share in at.missing.items():
        columns[name][draw.random(count) < share] = np.nan
    return [{name: _cell(column[row]) for name, column in columns.items()} for row in range(count)]


def write(folder: Path, hospital: str, count: int, seed: int) -> Path:
    """Write the hospital's file into `folder`; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hospital}.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["patient", *FEATURES, LABEL])
        for number, row in enumerate(patients(count, hospital, seed), start=1):
            writer.writerow([f"{hospital}-{number:04d}", *(row[name] for name in (*FEATURES, LABEL))])
    return path


def _choice(
    draw: np.random.Generator, sick: NDArray[np.bool_], healthy_shares: Sequence[float], sick_shares: Sequence[float],
    *, first: int = 1,
) -> Column:  # fmt: skip
    """A code for each patient, from `first` on, by the shares among the healthy and among the sick."""
    bounds = np.where(sick[:, None], np.cumsum(sick_shares), np.cumsum(healthy_shares))
    codes = (draw.random(len(sick))[:, None] > bounds).sum(axis=1)
    return first + np.minimum(codes, len(healthy_shares) - 1).astype(float)


def _cell(value: float) -> Cell:
    if np.isnan(value):
        return None
    return int(value) if float(value).is_integer() else float(value)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write a hospital's examinations as a CSV file.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hospital", choices=sorted(HOSPITALS), default="cleveland")
    parser.add_argument("--patients", type=int, default=400)
    parser.add_argument("--seed", type=int, default=7)
    asked = parser.parse_args()
    print(f"{asked.patients} patients in {write(asked.folder, asked.hospital, asked.patients, asked.seed)}")


if __name__ == "__main__":
    main()
