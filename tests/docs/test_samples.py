"""A stored sample of every released event must parse for ever, and mean what it meant.

A new event needs a sample: run this file as a script to write those that are missing. Never change one that is there.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from builders import sample  # one valid event of each class

from turnout.common.bus.cloudevents import decode, encode
from turnout.common.bus.port import Received, Record
from turnout.common.events import REGISTRY

SAMPLES = Path(__file__).parent / "samples"


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_stored_sample_still_parses(name: str) -> None:
    path = SAMPLES / f"{name}.v{REGISTRY[name].major}.json"
    assert path.exists(), f"no sample of {name}; run python {Path(__file__).name}"
    stored = json.loads(path.read_text())
    record = Record(
        topic=name,
        key=stored["key"].encode(),
        value=json.dumps(stored["value"]).encode(),
        headers=tuple((k, v.encode()) for k, v in stored["headers"].items()),
    )
    event = decode(Received(record, partition=0, offset=0, timestamp=datetime(2026, 1, 1, tzinfo=UTC)))
    assert type(event).__name__ == name
    again = json.loads(encode(event).value or b"")
    assert {k: again[k] for k in stored["value"]} == stored["value"]


def write_missing() -> None:
    SAMPLES.mkdir(exist_ok=True)
    for name, kind in REGISTRY.items():
        path = SAMPLES / f"{name}.v{kind.major}.json"
        if path.exists():
            continue
        record = encode(sample(kind))
        stored = {
            "key": (record.key or b"").decode(),
            "headers": {k: v.decode() for k, v in record.headers},
            "value": json.loads(record.value or b""),
        }
        path.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    write_missing()
