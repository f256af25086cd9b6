"""Write the Wisconsin Diagnostic measurements (569 rows, 30 numbers each) as three monthly CSV files.

The data come inside scikit-learn. The last file gets five dirty rows, so that there is something to quarantine;
`DIRTY` says which. Rows are shuffled by a fixed seed: the last fifth of them is what no candidate trains on.

    python examples/breast_cancer/make_data.py FOLDER
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

MONTHS = ("2026-01.csv", "2026-02.csv", "2026-03.csv")
# Cells of a dirty row by column; the reason why it cannot be read.
DIRTY = (
    ({"mean radius": "n/a (probe offline)"}, "text where a number must be"),
    ({"worst area": "inf"}, "not a finite number"),
    ({"mean texture": "17,99"}, "a decimal comma"),
    (None, "a row that ends after three cells"),
    ({"area error": "1e999"}, "a number too large for any computer"),
)


def rows() -> list[dict[str, str]]:
    """All measurements in the order of the files, as text: an id, 30 numbers, the diagnosis."""
    data = load_breast_cancer()
    order = np.random.default_rng(7).permutation(len(data.target))
    return [
        {
            "patient": f"p-{number:04d}",
            **{name: repr(float(cell)) for name, cell in zip(data.feature_names, data.data[index], strict=True)},
            "diagnosis": str(data.target_names[data.target[index]]),
        }
        for number, index in enumerate(order, start=1)
    ]


def write(folder: Path) -> list[Path]:
    """Write the three files into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = rows()
    header = list(clean[0])
    paths: list[Path] = []
    for month, part in zip(MONTHS, np.array_split(np.arange(len(clean)), len(MONTHS)), strict=True):
        lines = [list(clean[i].values()) for i in part]
        if month == MONTHS[-1]:
            # In the middle of the file, so that the split's last fifth begins where it would without them.
            lines[5:5] = _dirty_lines(clean[int(part[0])])
        path = folder / month
        text = io.StringIO(newline="")
        csv.writer(text).writerows([header, *lines])
        content = text.getvalue().encode()
        if not path.exists() or path.read_bytes() != content:  # somebody may be reading it
            path.write_bytes(content)
        paths.append(path)
    return paths


def _dirty_lines(template: dict[str, str]) -> list[list[str]]:
    return [
        list({**template, "patient": f"dirty-{number}", **cells}.values())
        if cells is not None
        else [f"dirty-{number}", *list(template.values())[1:3]]
        for number, (cells, _) in enumerate(DIRTY, start=1)
    ]


if __name__ == "__main__":
    for written in write(Path(sys.argv[1])):
        print(written)
