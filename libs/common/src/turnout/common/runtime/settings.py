"""What an operator decides about a process; what a user decides about a model is in the pipeline file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class RuntimeSettings(BaseSettings):
    """Settings that every process has, from `TURNOUT_…` variables."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_", frozen=True)

    home: Path = Field(default=Path(".turnout"), description="Folder of the embedded bus and stores.")
    bus: Literal["embedded", "kafka"] = Field(
        default="embedded", description="The bus: a file of the home, or Kafka (`TURNOUT_KAFKA_…`)."
    )
    online: Literal["embedded", "redis"] = Field(
        default="embedded", description="The online store: a file of the home, or Redis (`TURNOUT_REDIS_…`)."
    )
    history: Literal["embedded", "cassandra"] = Field(
        default="embedded", description="The history store: a file of the home, or Cassandra (`TURNOUT_CASSANDRA_…`)."
    )
    jobs: Literal["embedded", "cassandra"] = Field(
        default="embedded",
        description="Where long work is recorded: a file of the home, for processes of one machine, or Cassandra.",
    )
    source_roots: tuple[Path, ...] = Field(
        default=(Path(),), description="Folders that a source may lie under; anything else is refused."
    )
    workers: int = Field(default=2, ge=1, description="Processes for CPU work.")
    log_level: str = Field(default="info", description="Least severe log line that is written.")
    patience_seconds: float = Field(
        default=30.0, gt=0, description="Seconds without progress after which the process ends, to be started again."
    )
