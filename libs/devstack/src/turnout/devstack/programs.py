"""The programs behind the servers: Java libraries from Maven Central, kept in a cache; others from the system."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from turnout.devstack.server import MissingError

# What Debian calls the package with each program.
_PACKAGES = {
    "java": "default-jre-headless",
    "mvn": "maven",
    "redis-server": "redis-server",
    "prometheus": "prometheus",
}

TRIES = 3

KAFKA = (
    "org.apache.kafka:kafka_2.13:4.1.0",
    "org.apache.kafka:kafka-tools:4.1.0",
    "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3",
)
CASSANDRA = ("org.apache.cassandra:cassandra-all:5.0.5",)

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>turnout</groupId><artifactId>jars</artifactId><version>1</version>
<dependencies>{dependencies}</dependencies></project>
"""
_DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"


def cache() -> Path:
    """Where downloads are kept: `TURNOUT_DEVSTACK_CACHE`, else the user's cache folder."""
    named = os.environ.get("TURNOUT_DEVSTACK_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "turnout"


def program(name: str) -> str:
    """The path of a program. Raises `MissingError`."""
    found = shutil.which(name)
    if found is None:
        raise MissingError(f"{name} is not installed; on Debian: apt-get install {_PACKAGES[name]}")
    return found


def jars(name: str, artefacts: Sequence[str]) -> Path:
    """The folder with these Maven artefacts and what they need, downloaded once. Raises `MissingError`.

    Two processes may ask at once: one downloads, the other waits.
    """
    folder = cache() / f"{name}-{artefacts[0].rpartition(':')[2]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _download(artefacts, folder)
    return folder


def _download(artefacts: Sequence[str], folder: Path) -> None:
    aside = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    dependencies = "".join(_DEPENDENCY.format(*artefact.split(":")) for artefact in artefacts)
    (aside / "pom.xml").write_text(_POM.format(dependencies=dependencies))
    copy = [program("mvn"), "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={aside}"]
    said = ""
    for _ in range(TRIES):  # Maven goes on where it was cut off
        done = subprocess.run(copy, cwd=aside, check=False, capture_output=True, text=True)  # noqa: S603
        if done.returncode == 0:
            aside.rename(folder)
            return
        said = done.stdout[-2000:] + done.stderr[-500:]
    raise MissingError(f"Maven could not fetch {', '.join(artefacts)}:\n{said}")


def properties(path: Path, values: Mapping[str, object]) -> Path:
    """Write a Java properties file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    return path
