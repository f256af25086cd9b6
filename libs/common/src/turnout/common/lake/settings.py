"""What an operator decides about the lake's place; read without importing anything that talks to it."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class LakeSettings(BaseSettings):
    """Settings of a lake on object storage, from `TURNOUT_LAKE_…` variables."""

    # What does not parse may hold a key: it is not repeated in the error.
    model_config = SettingsConfigDict(
        env_prefix="TURNOUT_LAKE_", frozen=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    uri: str | None = Field(
        default=None,
        description="Where the lake lies: `s3://BUCKET/PREFIX`, also with `?endpoint_override=HOST:PORT&scheme=http&"
        "region=NAME`. Unset: the folder `lake` of the home.",
    )
    endpoint: str | None = Field(
        default=None, description="URL of the S3 server, where it is not Amazon's: `http://minio:9000`."
    )
    region: str | None = Field(default=None, description="Region of the bucket; unset: as the AWS variables say.")
    access_key: str | None = Field(
        default=None, description="Access key; unset: found as every AWS client does (variables, profile, role)."
    )
    secret_key: SecretStr | None = Field(default=None, description="Secret key of the access key.")
    connect_seconds: float = Field(default=3.0, gt=0, description="Longest wait for a connection, in seconds.")
    answer_seconds: float = Field(default=20.0, gt=0, description="Longest wait for the next byte, in seconds.")
