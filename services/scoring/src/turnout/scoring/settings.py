"""What an operator decides about scoring; how long an answer may take is in the pipeline file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ScoringSettings(BaseSettings):
    """Settings of scoring, from `TURNOUT_SCORING_…` variables."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_SCORING_", frozen=True)

    worker: str = Field(
        default="0", pattern=r"^[A-Za-z0-9-]{1,40}$", description="Name of this worker; its outbox is named after it."
    )
    durability: Literal["FULL", "NORMAL"] = Field(
        default="FULL", description="What an answered score survives: FULL a power cut, NORMAL a killed process."
    )
    reserve_ms: float = Field(
        default=5.0,
        ge=0,
        description="Milliseconds of every deadline kept for the commit and the reply (20 % at most).",
    )
    features_ms: float = Field(
        default=20.0,
        gt=0,
        description="Longest wait for an entity's features, in milliseconds (half a deadline at most).",
    )
    memory_mb: int = Field(
        default=1024, ge=64, description="MiB that a version's own process may map beyond an empty one."
    )
    model_mb: int = Field(default=256, ge=1, description="Largest model file that is admitted, in MiB.")
    admission_seconds: float = Field(default=10.0, gt=0, description="Longest trial of a version, in seconds.")
    spare: int = Field(
        default=2, ge=1, description="Versions per pipeline that stay loaded only because a request named them."
    )
