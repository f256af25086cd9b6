"""Where Cassandra is, who asks, and how patient we are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

_PORT = 9042


class CassandraSettings(BaseSettings):
    """From `TURNOUT_CASSANDRA_…` variables."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_CASSANDRA_", frozen=True, hide_input_in_errors=True)

    hosts: str = Field(
        default="127.0.0.1:9042",
        pattern=r"^[^\s,]+(,[^\s,]+)*$",
        description="Nodes asked first, HOST:PORT or HOST, with commas between; the others are learnt from them.",
    )
    keyspace: str = Field(
        default="turnout", pattern=r"^[a-z][a-z0-9_]{0,47}$", description="The keyspace of Turnout's tables."
    )
    user: str | None = Field(default=None, description="The role that logs in; unset: no login.")
    password: SecretStr | None = Field(default=None, description="The role's password.")
    tls: bool = Field(default=False, description="Whether to speak TLS.")
    tls_ca_file: Path | None = Field(
        default=None, description="PEM file of who may sign the nodes' certificates; unset: the system's."
    )
    tls_check_hostname: bool = Field(
        default=True, description="Whether a node's certificate must name the address it is reached by."
    )
    tls_certificate_file: Path | None = Field(
        default=None, description="PEM file of our own certificate, if asked for."
    )
    tls_key_file: Path | None = Field(default=None, description="PEM file of our certificate's key.")
    datacenter: str | None = Field(
        default=None, description="The data centre whose nodes are asked; unset: that of the first of `hosts`."
    )
    consistency: str = Field(
        default="LOCAL_QUORUM",
        pattern="^(ONE|LOCAL_ONE|TWO|QUORUM|LOCAL_QUORUM|EACH_QUORUM|ALL)$",
        description="Copies that must have answered a read or write. Less than a quorum may forget what it promised.",
    )
    serial_consistency: str = Field(
        default="LOCAL_SERIAL",
        pattern="^(LOCAL_SERIAL|SERIAL)$",
        description="Who decides a lightweight transaction: the data centre (LOCAL_SERIAL) or all of them (SERIAL).",
    )
    create_schema: bool = Field(
        default=True,
        description="Whether to make keyspace and tables that are not there; off where the role may not.",
    )
    replication: Mapping[str, int] = Field(
        default={"replication_factor": 1},
        description="Copies by data centre of a keyspace made by us, as JSON; `replication_factor`: in each of them.",
    )
    timeout_seconds: float = Field(default=5.0, gt=0, description="Seconds a request may take.")
    connect_timeout_seconds: float = Field(default=5.0, gt=0, description="Seconds until a connection must stand.")
    speculate_after_ms: float = Field(
        default=150.0, gt=0, description="Milliseconds after which a read is sent to one more node as well."
    )
    in_flight: int = Field(default=128, ge=1, description="Requests of one store under way at once; more wait here.")

    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each of `hosts`; a bare IPv6 address has no port, one in brackets may."""
        return [_address(host) for host in self.hosts.split(",")]


def _address(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        return host, int(port.removeprefix(":") or _PORT)
    if text.count(":") > 1:
        return text, _PORT
    host, _, port = text.partition(":")
    return host, int(port or _PORT)
