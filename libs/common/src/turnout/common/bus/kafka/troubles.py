"""Kafka's errors in our words: what is away, why, and which setting or right mends it. Never a secret."""

from __future__ import annotations

import logging
import ssl
import time

import structlog
from aiokafka import errors

from turnout.common.bus.kafka.settings import KafkaSettings
from turnout.common.errors import Unavailable

log = structlog.get_logger()

# What went wrong is asked again after this long, not sooner: less than one attempt in a second.
PAUSE_SECONDS = 1.5
# The client library says one thing many times a second while a broker is away.
REPEAT_SECONDS = 30.0

FAILURES = (errors.KafkaError, OSError, TimeoutError)


def unavailable(error: BaseException, settings: KafkaSettings, doing: str) -> Unavailable:
    """The error as `Unavailable`; `doing` completes the sentence "… while"."""
    where = f"Kafka at {settings.servers}"
    user = f"User:{settings.username or 'ANONYMOUS'}"
    match error:
        case Unavailable():
            return error
        case errors.SaslAuthenticationFailed() | errors.AuthenticationFailedError():
            why = (
                f"it refuses the user {settings.username!r}; check TURNOUT_KAFKA_USERNAME, TURNOUT_KAFKA_PASSWORD and"
                f" TURNOUT_KAFKA_MECHANISM (now {settings.mechanism})"
            )
        case errors.UnsupportedSaslMechanismError() | errors.IllegalSaslStateError():
            why = f"it does not take TURNOUT_KAFKA_MECHANISM={settings.mechanism}; set what the listener has"
        case errors.TopicAuthorizationFailedError():
            why = f"{user} has no right on the topic while {doing}; grant it with kafka-acls.sh --add --topic"
        case errors.GroupAuthorizationFailedError():
            why = f"{user} has no right on the group while {doing}; grant READ with kafka-acls.sh --add --group"
        case errors.ClusterAuthorizationFailedError():
            why = (
                f"{user} has no right on the cluster while {doing}; grant WRITE on the topics with kafka-acls.sh --add"
                " --topic, or what is missing with --cluster"
            )
        case errors.CommitFailedError() | errors.IllegalStateError():
            why = "the partition moved to another member"
        case ssl.SSLError():
            why = f"TLS failed ({error.reason or error}); check TURNOUT_KAFKA_TLS, _CA_FILE, _CERT_FILE and _KEY_FILE"
        case (
            errors.KafkaConnectionError()
            | errors.NodeNotReadyError()
            | errors.StaleMetadata()
            | errors.RequestTimedOutError()
            | errors.KafkaTimeoutError()
            | OSError()
            | TimeoutError()
        ):
            said = str(error) or "no answer in time"
            why = f"nothing usable answers there ({said}); check TURNOUT_KAFKA_SERVERS, _TLS and _USERNAME"
        case _:
            why = f"{str(error) or type(error).__name__} while {doing}"
    return Unavailable(where, why)


def again(error: Unavailable) -> Unavailable:
    """The same error to raise once more: one that is raised often would drag every traceback along."""
    return Unavailable(error.what, error.why)


class Refusals:
    """What was refused a moment ago, so that it is not asked for again at once.

    All refused things together are asked for less than once in a second, however many ask.
    """

    def __init__(self) -> None:
        self._refused: dict[str, tuple[float, Unavailable]] = {}

    def check(self, what: str) -> None:
        """Raise the `Unavailable` of the last attempt if it is not long ago."""
        found = self._refused.get(what)
        if found is not None and time.monotonic() < found[0]:
            raise again(found[1])

    def note(self, what: str, error: Unavailable) -> None:
        """It was refused just now."""
        now = time.monotonic()
        # Who has not asked again for long has gone.
        self._refused = {name: kept for name, kept in self._refused.items() if now < kept[0] + REPEAT_SECONDS}
        self._refused.pop(what, None)
        self._refused[what] = (now + PAUSE_SECONDS * (1 + len(self._refused)), error)

    def clear(self, what: str) -> None:
        """It was granted."""
        self._refused.pop(what, None)


class QuietHandler(logging.Handler):
    """The client library's warnings as lines of ours: one in `PAUSE_SECONDS`, the same words once in half a minute."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._spoke = 0.0
        self._said: dict[str, float] = {}
        self._silent = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Say it, or count it."""
        now = time.monotonic()
        words = str(record.msg)
        if now - self._spoke < PAUSE_SECONDS or now - self._said.get(words, -REPEAT_SECONDS) < REPEAT_SECONDS:
            self._silent += 1
            return
        self._spoke = self._said[words] = now
        log.warning("the kafka client says", message=record.getMessage(), unsaid=self._silent)
        self._silent = 0


def quieten() -> None:
    """Take the client library's logging over; for the whole process."""
    logger = logging.getLogger("aiokafka")
    if not any(isinstance(handler, QuietHandler) for handler in logger.handlers):
        logger.addHandler(QuietHandler())
        logger.setLevel(logging.WARNING)
        logger.propagate = False
