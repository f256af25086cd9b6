"""Where Kafka is and how to speak to it: `TURNOUT_KAFKA_…` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


class KafkaSettings(BaseSettings):
    """What an operator decides about Kafka."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_KAFKA_", frozen=True, populate_by_name=True)

    servers: str = Field(
        default="localhost:9092", min_length=1, description="Brokers to begin with, as HOST:PORT[,HOST:PORT…]."
    )
    username: str | None = Field(default=None, description="User for SASL; without one there is no SASL.")
    password: SecretStr | None = Field(default=None, description="The user's password.")
    mechanism: Mechanism = Field(default="SCRAM-SHA-512", description="SASL mechanism, where there is a user.")
    tls: bool = Field(default=False, description="Whether to speak TLS with the brokers.")
    ca_file: Path | None = Field(
        default=None, description="Certificates (PEM) that the brokers' are checked against; default: the system's."
    )
    cert_file: Path | None = Field(default=None, description="Our own certificate (PEM), where brokers ask for one.")
    key_file: Path | None = Field(default=None, description="The key (PEM) of our own certificate.")
    create_topics: bool = Field(
        default=True, description="Whether to create topics that are missing; otherwise they are only checked."
    )
    topic_prefix: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]{0,100}$",
        description="Stands before the names of our topics and groups, so that several installations share a cluster."
        " Topics of somebody else are named in full.",
    )
    replication_factor: int = Field(
        default=-1, ge=-1, le=32_767, description="Replicas of a topic that we create; -1: as the brokers decide."
    )
    timeout_seconds: float = Field(
        default=10.0, gt=0, description="Seconds after which a broker that does not answer counts as away."
    )
    instance: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]{1,150}$",
        validation_alias=AliasChoices("instance", "TURNOUT_INSTANCE"),
        description="TURNOUT_INSTANCE: names this process among all of the installation, the same after a restart"
        " (the pod's name). Default: the host's name and a number that no other process of this home has.",
    )
