"""MLflow's client, imported when it is first needed: that takes seconds. Nothing is told to anybody."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from turnout.common.errors import Invalid, Unknown

if TYPE_CHECKING:
    from mlflow import MlflowClient


def client_class() -> type[MlflowClient]:
    """The class, with telemetry switched off before MLflow is imported and its letters kept back."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    # Its letters about tables it makes and migrations it runs are nobody's business here.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient  # noqa: PLC0415 (takes seconds)

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient


def in_words(error: Exception) -> Invalid | None:
    """What MLflow refused, where the request is to blame."""
    code = getattr(error, "error_code", "")
    if code == "RESOURCE_DOES_NOT_EXIST":
        return Unknown("model registry", str(error))
    if code == "INVALID_PARAMETER_VALUE":
        return Invalid("model registry", str(error))
    return None
