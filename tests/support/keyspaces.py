"""Cassandra keyspaces of one test module: made once, emptied for each test, for making tables takes seconds."""

from __future__ import annotations

import os
from typing import Any

from turnout.common.cassandra.connection import open_cluster
from turnout.common.cassandra.settings import CassandraSettings


def emptied(server: str, keyspace: str) -> CassandraSettings:
    """Settings for the keyspace at HOST:PORT, one for each process of a run; what tables it has are empty."""
    keyspace += os.environ.get("PYTEST_XDIST_WORKER", "")
    settings = CassandraSettings(hosts=server, keyspace=keyspace, timeout_seconds=30)
    cluster = open_cluster(settings)
    try:
        session = cluster.connect()
        for table in _tables(session, keyspace):
            if table != "format" and session.execute(f"SELECT * FROM {keyspace}.{table} LIMIT 1").one():
                session.execute(f"TRUNCATE {keyspace}.{table}", timeout=60)
    finally:
        cluster.shutdown()
    return settings


def _tables(session: Any, keyspace: str) -> list[str]:
    rows = session.execute("SELECT table_name FROM system_schema.tables WHERE keyspace_name = %s", (keyspace,))
    return [row["table_name"] for row in rows]
