"""Kafka 4 (KRaft): one node that is broker and controller."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from turnout.devstack.programs import KAFKA, jars, program, properties
from turnout.devstack.server import Server, StartError, kept_port, listens

_LOG4J = {
    "rootLogger.level": "WARN",
    "rootLogger.appenderRef.out.ref": "out",
    "appender.out.type": "Console",
    "appender.out.name": "out",
    "appender.out.layout.type": "PatternLayout",
    "appender.out.layout.pattern": "%d %p %c: %m%n",
}


def kafka(
    folder: Path,
    port: int,
    *,
    more: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Server:
    """A broker at `port`; `more` are further lines of server.properties (SASL, ACLs), `environment` its variables.

    Raises `MissingError`, `StartError`.
    """
    java, classes = program("java"), f"{jars('kafka', KAFKA)}/*"
    controller = kept_port(folder / "controller.port")
    settings = properties(
        folder / "server.properties",
        {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": folder / "data",
            "num.partitions": 1,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "auto.create.topics.enable": "false",
            **(more or {}),
        },
    )
    logging = properties(folder / "log4j2.properties", _LOG4J)
    if not (folder / "data" / "meta.properties").exists():
        tool = [java, "-cp", classes, "kafka.tools.StorageTool"]
        name = subprocess.run([*tool, "random-uuid"], capture_output=True, text=True, check=True).stdout.split()[-1]  # noqa: S603
        form = [*tool, "format", "-t", name, "-c", str(settings)]
        done = subprocess.run(form, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise StartError(f"kafka's storage could not be formatted:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
    command = [
        java, "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
        f"-Dlog4j2.configurationFile={logging}", "-cp", classes, "kafka.Kafka", str(settings),
    ]  # fmt: skip
    return Server("kafka", folder, port, command, lambda: listens(port), environment or {})
