"""Cassandra 5: one node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from turnout.devstack.programs import CASSANDRA, jars, program
from turnout.devstack.server import Server, kept_port, listens

# What Cassandra reaches into, that Java 17 keeps closed (conf/jvm17-server.options of its distribution).
_EXPORTS = (
    "java.base/jdk.internal.misc", "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry", "java.rmi/sun.rmi.server", "java.sql/java.sql", "jdk.unsupported/sun.misc",
    "java.base/java.lang.ref", "java.base/java.lang.reflect",
)  # fmt: skip
_OPENS = (
    "java.base/java.lang", "java.base/java.lang.module", "java.base/java.lang.reflect", "java.base/java.io",
    "java.base/java.nio", "java.base/java.util", "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic", "java.base/jdk.internal.loader", "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect", "java.base/jdk.internal.math", "java.base/jdk.internal.module",
    "java.base/jdk.internal.util.jar", "java.base/sun.nio.ch", "jdk.management/com.sun.management.internal",
)  # fmt: skip
_LOGBACK = """<configuration><appender name="out" class="ch.qos.logback.core.ConsoleAppender">
<encoder><pattern>%d %level %logger: %msg%n</pattern></encoder></appender>
<root level="WARN"><appender-ref ref="out"/></root></configuration>
"""


def cassandra(folder: Path, port: int, *, more: Mapping[str, object] | None = None) -> Server:
    """A node that speaks CQL at `port`; `more` are further settings of cassandra.yaml. Raises `MissingError`."""
    folder.mkdir(parents=True, exist_ok=True)
    storage = kept_port(folder / "storage.port")
    data = folder / "data"
    settings = {
        "cluster_name": "devstack",
        "num_tokens": 1,
        "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
        "endpoint_snitch": "SimpleSnitch",
        "commitlog_sync": "periodic",
        "commitlog_sync_period": "10000ms",
        "commitlog_directory": str(data / "commitlog"),
        "data_file_directories": [str(data / "data")],
        "hints_directory": str(data / "hints"),
        "cdc_raw_directory": str(data / "cdc"),
        "saved_caches_directory": str(data / "caches"),
        "seed_provider": [
            {
                "class_name": "org.apache.cassandra.locator.SimpleSeedProvider",
                "parameters": [{"seeds": f"127.0.0.1:{storage}"}],
            }
        ],
        "listen_address": "127.0.0.1",
        "rpc_address": "127.0.0.1",
        "storage_port": storage,
        "native_transport_port": port,
        "start_native_transport": True,
        "key_cache_size": "8MiB",
        "counter_cache_size": "1MiB",
        "file_cache_size": "32MiB",
        "memtable_heap_space": "64MiB",
        "memtable_offheap_space": "64MiB",
        "auto_snapshot": False,
        # A busy machine is slow, not broken.
        "write_request_timeout": "10s",
        "read_request_timeout": "10s",
        "cas_contention_timeout": "10s",
        **(more or {}),
    }
    (folder / "cassandra.yaml").write_text(yaml.safe_dump(settings))
    (folder / "logback.xml").write_text(_LOGBACK)
    command = [
        program("java"), "-Xms384m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
        f"-Dcassandra.config=file://{folder / 'cassandra.yaml'}",
        f"-Dlogback.configurationFile=file://{folder / 'logback.xml'}",
        f"-Dcassandra.storagedir={data}",
        "-Dcassandra-foreground=yes", "-Dcassandra.skip_wait_for_gossip_to_settle=0", "-Dcassandra.ring_delay_ms=100",
        "-Djdk.attach.allowAttachSelf=true",
        *(word for name in _EXPORTS for word in ("--add-exports", f"{name}=ALL-UNNAMED")),
        *(word for name in _OPENS for word in ("--add-opens", f"{name}=ALL-UNNAMED")),
        "-cp", f"{jars('cassandra', CASSANDRA)}/*", "org.apache.cassandra.service.CassandraDaemon",
    ]  # fmt: skip
    return Server("cassandra", folder, port, command, lambda: listens(port))
