"""What an operator decides about monitoring; what a user decides about a pipeline is in its file."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class MonitoringSettings(BaseSettings):
    """Settings of monitoring, from `TURNOUT_MONITORING_…` variables."""

    model_config = SettingsConfigDict(env_prefix="TURNOUT_MONITORING_", frozen=True)

    retention_days: float = Field(
        default=90, gt=0, description="Days that scores, outcomes and features over time are kept in the history store."
    )
    expiry_seconds: float = Field(
        default=3600, gt=0, description="Seconds between two looks for what is past its retention."
    )
