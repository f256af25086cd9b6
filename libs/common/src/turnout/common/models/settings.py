"""What an operator decides about the model registry; read without importing MLflow."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class MlflowSettings(BaseSettings):
    """Settings of an MLflow server, from `TURNOUT_MLFLOW_…` variables.

    What they leave open MLflow finds as ever: `MLFLOW_TRACKING_USERNAME`, `MLFLOW_TRACKING_SERVER_CERT_PATH` and so on.
    """

    # What does not parse may hold a password: it is not repeated in the error.
    model_config = SettingsConfigDict(
        env_prefix="TURNOUT_MLFLOW_", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    uri: str | None = Field(
        default=None,
        description="URL of the MLflow server (3.11 or newer): `http://mlflow:5000`. Unset: the folder `mlflow` of the "
        "home.",
    )
    username: str | None = Field(default=None, description="User of the server, where it asks for one.")
    password: SecretStr | None = Field(default=None, description="The user's password.")
    token: SecretStr | None = Field(default=None, description="Bearer token, where the server asks for that instead.")
    answer_seconds: int = Field(
        default=5, ge=1, description="Longest wait for a connection and for an answer, in seconds; tried twice."
    )
