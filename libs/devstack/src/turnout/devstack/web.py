"""The servers that speak HTTP: MLflow, an S3 server, Prometheus."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from turnout.devstack.programs import program
from turnout.devstack.server import Server, replies


def mlflow(folder: Path, port: int) -> Server:
    """A tracking server and registry on SQLite, which hands artefacts on."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.sqlite'}",
        "--artifacts-destination", str(folder / "artefacts"),
    ]  # fmt: skip
    # Its job runners are six processes that nothing here asks for anything.
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return Server("mlflow", folder, port, command, lambda: replies(f"http://127.0.0.1:{port}/health"), quiet)


def s3(folder: Path, port: int) -> Server:
    """An S3 server in memory (moto): what it holds ends with it."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return Server("s3", folder, port, command, lambda: replies(f"http://127.0.0.1:{port}/moto-api/data.json"))


def prometheus(folder: Path, port: int, targets: dict[str, str] | None = None) -> Server:
    """A Prometheus that scrapes itself and `targets` (job name: host and port) every second. Raises `MissingError`."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = {"prometheus": f"127.0.0.1:{port}", **(targets or {})}
    scrape = [{"job_name": name, "static_configs": [{"targets": [at]}]} for name, at in jobs.items()]
    settings = {"global": {"scrape_interval": "1s"}, "scrape_configs": scrape}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    command = [
        program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    return Server("prometheus", folder, port, command, lambda: replies(f"http://127.0.0.1:{port}/-/ready"))
