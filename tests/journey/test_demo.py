"""`make demo` and `make up`, as the processes that they are."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from environment import ROOT
from system import free_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo"), pytest.mark.timeout(300)]

DEMO = ROOT / "examples" / "breast_cancer" / "demo.py"
WIDTH = 120


def command(home: Path, *more: str) -> list[str]:
    return [sys.executable, str(DEMO), "--home", str(home), "--port", str(free_port()), *more]


def demo(home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(home), capture_output=True, text=True, timeout=200, check=False, cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": str(WIDTH)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "home"


@pytest.fixture(scope="module")
def said(home: Path) -> str:
    ran = demo(home)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert not ran.stderr
    return ran.stdout


def test_every_row_is_accounted_for(said: str) -> None:
    assert "574 rows read = 569 written + 5 quarantined, 3 batches" in said
    assert "574 rows read = 569 written + 5 quarantined\n" in said
    assert "569 rows written = 569 with a label + 0 without\n" in said
    parts = re.search(r"569 rows with a label = (\d+) to train \+ (\d+) to test", said)
    assert parts
    assert int(parts[1]) + int(parts[2]) == 569


def test_every_event_is_shown_and_one_candidate_wins(said: str) -> None:
    shown = [m[1] for m in re.finditer(r"^ +\d+\.\d\d s +([A-Za-z]+) ", said, re.MULTILINE)]
    assert set(shown) == {
        "PipelineDeclared", "SourceDataAvailable", "RawDataExtracted", "FeaturesGenerated", "DataSegregated",
        "ModelTrained", "ModelReady", "CandidateRefused", "RoutingChanged",
    }  # fmt: skip
    assert shown.count("ModelTrained") == 4
    table = said[said.index("base rate, no model") : said.index("Why: roc_auc")]
    assert table.count("champion") == 1
    assert table.count("refused") == 3
    assert re.search(r"Why: roc_auc 0\.9\d+ \(base rate 0\.5\); there is no champion yet\.", said)


def test_both_protocols_answer(said: str) -> None:
    asked = said[said.index("4  Ask the champion") : said.index("5  Deploy a version")]
    assert asked.count('"served_by": ') == 2
    assert '"reason": ' in asked
    assert '"fallback": ' in asked
    assert '"shape": [1, 2]' in asked


def test_the_slow_version_is_passed_by_and_switched_off(said: str) -> None:
    broken = said[said.index("5  Deploy a version") : said.index("6  What really happened")]
    assert re.search(
        r"request +\d+: (benign|malignant) in +[\d.]+ ms from version 1, previous \((deadline|circuit)\)", broken
    )
    assert re.search(r"ModelDegraded +version 2: ", broken)
    assert re.search(r"RoutingChanged +champion 1 again", broken)
    assert "requests meanwhile, all answered" in broken


def test_outcomes_meet_their_scores(said: str) -> None:
    joined = said[said.index("6  What really happened") : said.index("7  Where did one score come from?")]
    counts = [int(n) for m in re.finditer(r"really \w+ +(\d+) +(\d+)", joined) for n in m.groups()]
    assert len(counts) == 4
    assert sum(counts) == 114
    promised = re.search(r"accuracy (\d\.\d+) over 114 outcomes .* promised was (\d\.\d+)", joined)
    assert promised
    assert promised[1] == promised[2], "the same rows and the same graph"


def test_a_score_goes_back_to_three_files(said: str) -> None:
    tree = said[said.index("7  Where did one score come from?") :]
    assert [f"2026-0{n}.csv" for n in (1, 2, 3)] == sorted(
        re.findall(r"(2026-\d\d\.csv) sha256 \w+… \(unchanged\)", tree)
    )
    assert re.search(r"batch \S+: 194 rows read = 189 written \+ 5 quarantined", tree)


def test_the_page_fits(said: str) -> None:
    """Lines stay within the terminal, but for the tree: an id that is cut off cannot be looked up."""
    tree = said.index("7  Where did one score come from?")
    assert [line for line in said[:tree].splitlines() if len(line) > WIDTH] == []


def test_somebody_elses_home_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    ran = demo(tmp_path)
    assert ran.returncode == 1
    assert "holds somebody's data; name another folder with --home" in " ".join(ran.stdout.split())
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_second_time_on_the_same_home_and_it_stays_up(said: str, home: Path) -> None:
    words = command(home, "--stay")
    url = f"http://127.0.0.1:{words[words.index('--port') + 1]}"
    seen: list[str] = []
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                seen.append(line)
                if "What to try next" in line:
                    break
            assert "574 rows read = 569 written + 5 quarantined\n" in "".join(seen)
            assert process.poll() is None
            assert httpx.get(f"{url}/readyz").status_code == httpx.codes.OK
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/readyz")
