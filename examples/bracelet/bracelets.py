"""Patients with a bracelet: it measures through the day and asks whether the heart is sick.

    python examples/bracelet/bracelets.py [--url http://127.0.0.1:8080] [--patients 20] [--readings 6]

A day passes in seconds. What the clinic found once (age, vessels, …) stays; the pulse, the pressure and what the curve
shows change with the hour. Each reading is one request, as a bracelet sends it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

import httpx
import numpy as np
from make_data import FEATURES, HOSPITALS, Cell, patients

FIRST_HOUR, LAST_HOUR = 7, 22


def day(patient: Mapping[str, Cell], readings: int, draw: np.random.Generator) -> Iterator[dict[str, Cell]]:
    """A patient's readings from the morning to the night."""
    for hour in np.linspace(FIRST_HOUR, LAST_HOUR, readings):
        # Most is asked of the heart in the afternoon.
        effort = float(np.exp(-(((hour - 15) / 4) ** 2)))
        row = {name: patient[name] for name in FEATURES}
        row["thalach"] = round((patient["thalach"] or 0) * (0.8 + 0.2 * effort) + draw.normal(0, 3))
        row["trestbps"] = round((patient["trestbps"] or 0) + 12 * effort + draw.normal(0, 4))
        row["oldpeak"] = round((patient["oldpeak"] or 0) * (0.5 + 0.5 * effort), 1)
        row["exang"] = patient["exang"] if effort > 0.5 else 0
        yield row


def play(url: str, pipeline: str, hospital: str, count: int, readings: int, seed: int, key: str | None) -> None:
    """Ask once a reading, patients side by side as the day goes on, and say what came of it."""
    draw = np.random.default_rng(seed)
    # Not the patients of the training files: those are drawn from other seeds.
    wearing = {f"{hospital}-{seed}-{n:03d}": row for n, row in enumerate(patients(count, hospital, seed), start=1)}
    days = {name: list(day(row, readings, draw)) for name, row in wearing.items()}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    alarms: dict[str, int] = {}
    asked = 0
    with httpx.Client(base_url=url, headers=headers, timeout=30) as http:
        for moment in range(readings):
            for name in wearing:
                reply = http.post(
                    f"/pipelines/{pipeline}/score", json={"rows": [days[name][moment]], "entities": [name]}
                )
                if not reply.is_success:
                    raise SystemExit(f"{reply.status_code}: {reply.text}")
                (answer,) = reply.json()["rows"]
                asked += 1
                alarms[name] = alarms.get(name, 0) + (answer["value"] == "true")
    struck = sum(1 for times in alarms.values() if times)
    print(f"{asked} readings of {count} patients answered; {struck} patients were warned, {sum(alarms.values())} times")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Play a day of patients with a bracelet.")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where scoring answers")
    parser.add_argument("--pipeline", default="bracelet")
    parser.add_argument("--hospital", choices=sorted(HOSPITALS), default="cleveland")
    parser.add_argument("--patients", type=int, default=20)
    parser.add_argument("--readings", type=int, default=6, help="of each patient")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--key", help="the API key, once one is set")
    asked = parser.parse_args()
    play(asked.url, asked.pipeline, asked.hospital, asked.patients, asked.readings, asked.seed, asked.key)


if __name__ == "__main__":
    main()
