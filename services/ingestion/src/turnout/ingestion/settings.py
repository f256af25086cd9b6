"""What an operator decides about ingestion."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class IngestionSettings(BaseSettings):
    """From `TURNOUT_INGESTION_…` variables."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_INGESTION_", frozen=True)

    threads: int = Field(default=2, ge=1, description="Threads that read one file.")
    parallel: int = Field(default=1, ge=1, description="Announcements that are read at a time.")
    pulls: int = Field(default=2, ge=1, description="Topics that are pulled on request or by schedule at a time.")
    piece_bytes: int = Field(
        default=8 * 2**20, ge=2**16, description="Bytes of a file in one piece of work; memory grows with it."
    )
    expansion: int = Field(
        default=200, ge=1, description="How many times its size a compressed or Parquet file may decode to."
    )
    expansion_floor: int = Field(
        default=256 * 2**20, ge=0, description="Bytes that any compressed or Parquet file may decode to."
    )
    flush_seconds: float = Field(
        default=2.0, ge=0, le=15, description="Seconds between two batches of observations while few come."
    )
    flush_rows: int = Field(default=200, ge=1, description="Observations that are written without waiting for more.")
    sweep_hours: float = Field(
        default=24.0, gt=0, description="Age in hours at which files that a dead writer left are removed."
    )
