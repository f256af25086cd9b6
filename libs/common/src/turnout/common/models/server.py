"""An MLflow server, over its REST interface; artefacts go through it too.

MLflow's client takes credentials, timeouts and retries from environment variables only, so ours are put there. An
operator's own timeouts and retries for MLflow stay.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from turnout.common.errors import Invalid, Unavailable
from turnout.common.models.client import client_class, in_words
from turnout.common.models.settings import MlflowSettings

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Older servers have known holes: anybody who reaches them may read their files.
OLDEST = (3, 11)
_SETTINGS = "TURNOUT_MLFLOW_USERNAME and TURNOUT_MLFLOW_PASSWORD, or TURNOUT_MLFLOW_TOKEN"


class Server:
    """A `Home` on the server of `settings`. Safe for several threads, processes and machines.

    Raises `Invalid` for a URI that is none or holds a password.
    """

    def __init__(self, settings: MlflowSettings) -> None:
        self._settings = settings
        self._uri = _checked(settings.uri or "")
        self._what = f"the model registry at {self._uri}"
        self._lock = threading.Lock()
        self._opened: MlflowClient | None = None

    @contextmanager
    def client(self) -> Generator[MlflowClient]:
        """The client. What does not answer within seconds, refuses us or is too old is `Unavailable`."""
        with self._reaching():
            with self._lock:
                if self._opened is None:
                    self._opened = self._open()
            yield self._opened

    def artefacts(self, pipeline: str) -> str | None:
        """Where the server likes."""
        del pipeline
        return None

    def forget(self, client: MlflowClient, pipeline: str, runs: Iterable[Any]) -> None:
        """Runs go into the server's bin, which only `mlflow gc` there empties; their artefacts go for good."""
        from mlflow.store.artifact.artifact_repository_registry import (  # noqa: PLC0415 (takes seconds)
            get_artifact_repository,
        )

        del pipeline
        for run in runs:
            kept: Any = get_artifact_repository(run.info.artifact_uri, tracking_uri=self._uri)
            if client.list_artifacts(run.info.run_id):
                kept.delete_artifacts()
            client.delete_run(run.info.run_id)

    def _open(self) -> MlflowClient:
        made = client_class()
        os.environ.update(self._credentials())
        for name, value in self._patience().items():
            os.environ.setdefault(name, value)
        self._check_version()
        client = made(tracking_uri=self._uri, registry_uri=self._uri)
        client.search_experiments(max_results=1)
        return client

    def _credentials(self) -> dict[str, str]:
        settings = self._settings
        secrets = {"MLFLOW_TRACKING_PASSWORD": settings.password, "MLFLOW_TRACKING_TOKEN": settings.token}
        return {
            **({"MLFLOW_TRACKING_USERNAME": settings.username} if settings.username else {}),
            **{name: secret.get_secret_value() for name, secret in secrets.items() if secret},
        }

    def _patience(self) -> dict[str, str]:
        return {
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(self._settings.answer_seconds),
            # The runtime has retries of its own, with a longer breath and a readiness that shows them.
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        }

    def _check_version(self) -> None:
        from mlflow.utils.credentials import get_default_host_creds  # noqa: PLC0415 (takes seconds)
        from mlflow.utils.rest_utils import http_request  # noqa: PLC0415

        answer: Any = http_request(get_default_host_creds(self._uri), "/version", "GET")
        told = re.match(r"(\d+)\.(\d+)", answer.text) if answer.status_code == 200 else None
        if told is not None and (int(told[1]), int(told[2])) < OLDEST:
            found, oldest = told[0], ".".join(map(str, OLDEST))
            raise Unavailable(self._what, f"the server is MLflow {found}, which has known holes; update it to {oldest}")

    @contextmanager
    def _reaching(self) -> Generator[None]:
        try:
            yield
        # requests' errors are OSErrors.
        except OSError as error:
            raise Unavailable(self._what, error.strerror or f"no answer ({type(error).__name__})") from error
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "mlflow":
                raise
            raise in_words(error) or self._in_words(error) from None

    def _in_words(self, error: Exception) -> Unavailable:
        text = str(error)
        status = int(getattr(error, "get_http_status_code", int)())
        if "Invalid Host header" in text:
            host = urlsplit(self._uri).netloc
            return Unavailable(self._what, f"it does not know its name; start it with `--allowed-hosts {host}`")
        if status == 401:
            return Unavailable(self._what, f"it refuses us; see {_SETTINGS}")
        if status == 403:
            return Unavailable(self._what, f"the user may not do this; see {_SETTINGS}, and the user's permissions")
        if status == 404 or "not in a valid JSON format" in text:
            return Unavailable(self._what, "what answers there is no MLflow server; is TURNOUT_MLFLOW_URI right?")
        if "failed with exception" in text or "failed with timeout" in text:
            return Unavailable(self._what, "no answer; is TURNOUT_MLFLOW_URI right?")
        return Unavailable(self._what, text.partition("\n")[0][:300])


def _checked(uri: str) -> str:
    """The URI. No part of a wrong one is repeated in the error: it may hold a password."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise Invalid("TURNOUT_MLFLOW_URI", "is no URL of a server", fix="write https://HOST:PORT")
    if "@" in parts.netloc:
        raise Invalid("TURNOUT_MLFLOW_URI", "holds a password", fix=f"set {_SETTINGS} instead")
    return uri.rstrip("/")
