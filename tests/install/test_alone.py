"""Each distribution alone in an empty environment: it imports, and scoring answers without what only training needs.

In the shared environment a package can import what it never declared, and nothing complains; here it cannot.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import graphs
import pytest

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
SERVICES = sorted(path.parent.name for path in (ROOT / "services").glob("*/pyproject.toml"))

pytestmark = pytest.mark.slow


def constraints(folder: Path) -> Path:
    """The lock without its hashes: a package of this repository has none, and then uv wants none at all."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins = re.findall(r"^[A-Za-z0-9][^\s\\]*==[^\s\\]+(?: ;[^\\\n]+)?", lock, re.MULTILINE)
    path = folder / "constraints.txt"
    path.write_text("\n".join(pins) + "\n", encoding="utf-8")
    return path


def installed(folder: Path, *packages: str) -> Path:
    """An environment with nothing but these, from uv's cache where it has them; its interpreter."""
    home = folder / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, home], check=True)
    python = home / "bin" / "python"
    install = [UV, "pip", "install", "--quiet", "--python", python, "-c", constraints(folder), *packages]
    if subprocess.run([*install, "--offline"], check=False, capture_output=True).returncode != 0:
        subprocess.run(install, check=True)
    return python


def run(python: Path, code: str, *arguments: str, folder: Path) -> str:
    """What a program says, run away from the repository."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TURNOUT", "COV"))}
    command = [python, "-I", "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, env=clean, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


BUILDS = """
import importlib, pkgutil, sys
from pathlib import Path
name = sys.argv[1]
package = importlib.import_module(f"turnout.{name}")
for module in pkgutil.walk_packages(package.__path__, f"turnout.{name}."):
    importlib.import_module(module.name)
from importlib.metadata import entry_points
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.settings import RuntimeSettings
(entry,) = entry_points(group="turnout.services", name=name)
service = entry.load()(Environment(RuntimeSettings(home=Path("home"))))
print(service.name)
"""


def extras(service: str) -> str:
    """What its modules for servers need beside, as pip writes it: `[kafka]`, or nothing."""
    project = tomllib.loads((ROOT / "services" / service / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return f"[{','.join(project['optional-dependencies'])}]" if "optional-dependencies" in project else ""


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_all_that_it_imports(service: str, tmp_path: Path) -> None:
    python = installed(tmp_path, str(ROOT / "libs" / "common"), str(ROOT / "services" / service) + extras(service))
    assert run(python, BUILDS, service, folder=tmp_path).splitlines()[-1] == service


SCORES = """
import asyncio, importlib.util, sys
from datetime import UTC, datetime
from pathlib import Path

for absent in ("mlflow", "sklearn", "skl2onnx", "duckdb", "pandas"):
    assert importlib.util.find_spec(absent) is None, absent

import httpx
from turnout.common.events import Column, ModelReady, PipelineDeclared, Prior, RoutingChanged, RoutingTable, Target
from turnout.common.pipeline import parse
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.run import serve
from turnout.common.runtime.settings import RuntimeSettings
from turnout.scoring.service import build


async def main():
    environment = Environment(RuntimeSettings(home=Path("home")))
    common = {"source": "/test", "at": datetime.now(UTC), "pipeline": "p"}
    spec = parse("pipeline: p\\ntask: classification\\nsource: {label: y}\\nscoring: {slo_ms: 5000}\\n")
    await environment.bus.publish(
        PipelineDeclared.first(**common, spec=spec, spec_id=spec.spec_id),
        ModelReady.first(
            **common, version="1", file=environment.lake.put_model("p", Path(sys.argv[1]).read_bytes()),
            inputs=(Column(name="age", kind="number"), Column(name="colour", kind="category")),
            target=Target(task="classification", label="y", classes=("no", "yes")), prior=Prior(value="no"),
        ),
        RoutingChanged.first(**common, table=RoutingTable(version=1, champion="1"), why="test"),
    )
    stop = asyncio.Event()

    async def ask(url):
        async with httpx.AsyncClient(base_url=url) as client:
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.05)
            reply = await client.post("/pipelines/p/score", json={"rows": [{"age": 40, "colour": "red"}]})
            print(reply.status_code, reply.json()["rows"][0]["served_by"], reply.json()["rows"][0]["value"])
        stop.set()

    await serve(environment, [build(environment)], port=0, stop=stop, started=ask)
    await environment.close()


asyncio.run(main())
"""


def test_scoring_answers_without_what_only_training_needs(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(graphs.good())
    python = installed(tmp_path, str(ROOT / "libs" / "common"), str(ROOT / "services" / "scoring"))
    assert run(python, SCORES, str(model), folder=tmp_path).splitlines()[-1] == "200 champion yes"
