"""What an operator decides about training."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class TrainingSettings(BaseSettings):
    """Settings of training, from `TURNOUT_…` variables."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_", frozen=True)

    estimator_packages: tuple[str, ...] = Field(
        default=("sklearn",),
        description="Top-level packages that a candidate's import path may lead into: importing runs their code.",
    )
