"""What an operator decides about a process; what a user decides about a model is in the pipeline file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class RuntimeSettings(BaseSettings):
    """Settings that every process has, from `TURNOUT_…` variables."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_", frozen=True)

    home: Path = Field(default=Path(".turnout"), description="Folder of the embedded bus and stores.")
    source_roots: tuple[Path, ...] = Field(
        default=(Path(),), description="Folders that a source may lie under; anything else is refused."
    )
    workers: int = Field(default=2, ge=1, description="Processes for CPU work.")
    log_level: str = Field(default="info", description="Least severe log line that is written.")
    patience_seconds: float = Field(
        default=30.0, gt=0, description="Seconds without progress after which the process ends, to be started again."
    )
