"""What the README and the other pages say is so: commands run, examples parse, links lead somewhere."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from environment import ROOT
from system import TURNOUT, System

from turnout.common import pipeline

README = (ROOT / "README.md").read_text()
ADDRESS = "127.0.0.1:8080"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "services").glob("*/README.md")),
    *sorted((ROOT / "libs").glob("*/README.md")),
]
FOLDERS = ("docs", "examples", "libs", "services", "tests", "benchmarks")
# A command may end with this when it shows a refusal.
EXIT = re.compile(r"# exit code (\d+)$")


@dataclass(frozen=True)
class Command:
    """A line after `$ ` with its continuations, and what the page shows below it."""

    line: str
    shown: str

    @property
    def code(self) -> int:
        found = EXIT.search(self.line)
        return int(found[1]) if found else 0


def blocks(kind: str, text: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[Command]:
    for block in blocks("console", text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            more = next((i for i, line in enumerate(lines[1:], 1) if not line.startswith("> ")), len(lines))
            line = "\n".join([lines[0], *(line.removeprefix("> ") for line in lines[1:more])])
            yield Command(line, "\n".join(lines[more:]))


# --- commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """`turnout up` on a folder that holds `my.csv`, as the README has it."""
    (tmp_path / "my.csv").write_text("machine,hours,temperature [C],kind,y\n" + "\n".join(_machines()) + "\n")
    system = System(tmp_path / ".turnout", tmp_path)
    try:
        assert system.start(), system.tail()
        yield system
    finally:
        system.kill()


def _machines() -> Iterator[str]:
    chance = random.Random(7)
    for number in range(1, 501):
        hours, heat = chance.randrange(0, 9000), round(chance.gauss(60, 8), 1)
        kind = chance.choice(("lathe", "press", "drill"))
        risk = hours / 9000 + (heat - 60) / 40 + (kind == "press") * 0.2 + chance.gauss(0, 0.25)
        yield f"m-{number:03d},{hours},{heat if number % 50 else ''},{kind},{int(risk > 0.75)}"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.xdist_group("readme")
@pytest.mark.skipif(shutil.which("curl") is None, reason="the README asks with curl, and there is none")
def test_commands_do_what_the_readme_shows(system: System) -> None:
    real = {ADDRESS: system.url.removeprefix("http://")}
    found = list(commands(README))
    assert len(found) >= 10
    for command in found:
        line = _replaced(command.line, real)
        ran = _run(system, line)
        if command.shown.startswith(("{", "[")):
            shown = json.loads(command.shown)
            # An outcome joins its score a moment later, and on a busy machine somebody else answers in time.
            for _ in range(40):
                if _shape(json.loads(ran.stdout)) == _shape(shown):
                    break
                time.sleep(0.25)
                ran = _run(system, line)
            said = json.loads(ran.stdout)
            assert _shape(said) == _shape(shown), f"$ {line}\n{ran.stdout}"
            real |= _ids(shown, said)
        elif command.shown:
            _same_words(command.shown, ran.stdout + ran.stderr, line)
            real |= dict(zip(_keys(command.shown), _keys(ran.stdout), strict=True))
        assert ran.returncode == command.code, f"$ {line}\n{ran.stdout}{ran.stderr}"


def _run(system: System, line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False, cwd=system.sources,
        env={**os.environ, "PATH": f"{Path(TURNOUT).parent}:{os.environ['PATH']}", "NO_COLOR": "1"},
    )  # fmt: skip


def _replaced(line: str, real: dict[str, str]) -> str:
    for shown, ours in real.items():
        line = line.replace(shown, ours)
    return line


def _shape(node: Any) -> Any:
    """Keys, and how deep; of a list what its first element is; of a value nothing, but for who answered."""
    if isinstance(node, dict):
        return {key: value if key == "served_by" else _shape(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_shape(value) for value in node[:1]]
    return None


def _ids(shown: Any, said: Any) -> dict[str, str]:
    """Which id of ours stands for which one of the page."""
    if isinstance(shown, dict):
        mine = {shown["score_id"]: said["score_id"]} if "score_id" in shown else {}
        return mine | {k: v for key in shown if key in said for k, v in _ids(shown[key], said[key]).items()}
    if isinstance(shown, list) and shown and said:
        return _ids(shown[0], said[0])
    return {}


def _keys(text: str) -> list[str]:
    return re.findall(r"^turnout_\S+$", text, re.MULTILINE)


def _same_words(shown: str, said: str, line: str) -> None:
    """Each line of the page begins with the words of one of ours; numbers, times, ids and the order may differ."""
    ours = [_words(text) for text in said.splitlines()]
    for text in shown.splitlines():
        begins = _words(text)[:2]
        if begins:
            assert any(words[:2] == begins for words in ours), f"$ {line}\nshows: {text}\nsays:\n{said}"


def _words(text: str) -> list[str]:
    return re.findall(r"(?<![\w.-])[A-Za-z]{2,}(?![\w-])", text)


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"`make ([a-z-]+)`", page.read_text())
        assert {name for name in named if not name.startswith("test-")} <= targets, page
    assert {"demo", "test", "up"} <= targets & set(re.findall(r"`make ([a-z-]+)`", README))


def test_every_command_is_in_the_table() -> None:
    said = subprocess.run([TURNOUT, "--help"], capture_output=True, text=True, check=True, env=_plain()).stdout
    there = set(re.findall(r"^[│| ]+([a-z]+)  ", said, re.MULTILINE))
    table = README[README.index("## The command line") : README.index("## Running it")]
    named = set(re.findall(r"`(?:turnout )?([a-z]+)[ `]", table))
    assert named == there


def _plain() -> dict[str, str]:
    return {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", "TERM": "dumb"}


# --- examples, links, paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pipeline_files_parse(page: Path) -> None:
    found = [text for text in blocks("yaml", page.read_text()) if re.search(r"^pipeline:", text, re.MULTILINE)]
    for text in found:
        assert pipeline.parse(text).pipeline
    assert found or page != ROOT / "README.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_are_there(page: Path) -> None:
    """What stands in backticks and begins with one of our folders is there; `<name>` stands for anything."""
    for path in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[^\s`]*)`", page.read_text()):
        pattern = re.sub(r"<[^>]+>|\{[^}]+\}", "*", path).rstrip("/")
        assert any(ROOT.glob(pattern)), path


def test_it_is_short() -> None:
    assert len(README.splitlines()) < 250
