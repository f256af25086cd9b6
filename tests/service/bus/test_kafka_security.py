"""A broker that asks who is there: SASL, TLS and access rights, and what is said of a refusal."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import structlog
from buses import GROUP, answer, events_of, numbered
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from ports import forwarded, free_port
from pydantic import SecretStr

from turnout.common.bus.kafka.bus import KafkaBus
from turnout.common.bus.kafka.settings import KafkaSettings
from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import SourceDataAvailable, StageFailed
from turnout.devstack.kafka import kafka
from turnout.devstack.stack import Stack

pytestmark = pytest.mark.stack
SECONDS = 60
SECRET = "cAnArY-hunter2"
RIGHT = "cAnArY-correct"


@dataclass(frozen=True)
class Guarded:
    """A broker with a door for each way in."""

    plain: int
    tls: int
    ca: Path
    admin: AdminClient

    def settings(self, user: str, **changes: object) -> KafkaSettings:
        given = {
            "servers": f"127.0.0.1:{self.plain}", "username": user, "password": SecretStr(RIGHT),
            "mechanism": "SCRAM-SHA-512", "topic_prefix": f"t{uuid4().hex[:8]}.", "replication_factor": 1,
        }  # fmt: skip
        return KafkaSettings.model_validate(given | changes)

    def allow(self, user: str, kind: ResourceType, name: str, *operations: AclOperation) -> None:
        bindings = [
            AclBinding(
                kind, name, ResourcePatternType.PREFIXED, f"User:{user}", "*", operation, AclPermissionType.ALLOW
            )
            for operation in operations
        ]
        for done in self.admin.create_acls(bindings).values():
            done.result()


@pytest.fixture(scope="module")
def guarded(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """`alice` may do everything, `bob` what a test allows him."""
    folder = tmp_path_factory.mktemp("guarded")
    ca, keystore = certificates(folder)
    open_door, plain, tls = (free_port() for _ in range(3))
    controller = free_port()
    login = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_alice="{RIGHT}" user_bob="{RIGHT}";'
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    mechanisms = {"plain": login, "scram-sha-256": scram, "scram-sha-512": scram}
    broker = kafka(
        folder / "broker",
        open_door,
        more={
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{open_door},CONTROLLER://127.0.0.1:{controller},"
            f"SASL_PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{tls}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{open_door},"
            f"SASL_PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{tls}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,"
            "SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS;User:alice",
            "listener.name.sasl_ssl.ssl.keystore.type": "PEM",
            "listener.name.sasl_ssl.ssl.keystore.location": keystore,
        }
        | {
            f"listener.name.{door}.{mechanism}.sasl.jaas.config": config
            for door in ("sasl_plaintext", "sasl_ssl")
            for mechanism, config in mechanisms.items()
        },
    )
    broker.start()
    try:
        broker.wait()
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{open_door}"})
        for user in ("alice", "bob"):
            for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
                credential = UserScramCredentialUpsertion(user, ScramCredentialInfo(mechanism, 4096), RIGHT.encode())
                for done in admin.alter_user_scram_credentials([credential]).values():
                    done.result()
        yield Guarded(plain, tls, ca, admin)
    finally:
        broker.kill()


def certificates(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself; and it with its key, as the broker wants them."""
    key, certificate, both = folder / "key.pem", folder / "ca.pem", folder / "keystore.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_text(key.read_text() + certificate.read_text())
    return certificate, both


@pytest.fixture
async def buses(tmp_path: Path) -> AsyncIterator[type[KafkaBus]]:
    made: list[KafkaBus] = []

    class Kept(KafkaBus):
        def __init__(self, settings: KafkaSettings) -> None:
            super().__init__(settings, home=tmp_path)
            made.append(self)

    yield Kept  # pyright: ignore[reportReturnType]
    for bus in made:
        await bus.close()


async def there_and_back(bus: KafkaBus) -> None:
    """Publish, take, answer."""
    await bus.publish(numbered(0))
    async with asyncio.timeout(SECONDS), aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
        delivery = await anext(deliveries)
        await delivery.done(*map(answer, events_of([delivery])))
    assert [r.event().causation_id async for r in bus.replay(StageFailed)] == ["p-0"]
    assert await bus.lag(GROUP) == {"SourceDataAvailable": 0}


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_user_with_a_password(guarded: Guarded, buses: type[KafkaBus], mechanism: str) -> None:
    await there_and_back(buses(guarded.settings("alice", mechanism=mechanism)))


async def test_the_same_through_tls(guarded: Guarded, buses: type[KafkaBus]) -> None:
    door = f"127.0.0.1:{guarded.tls}"
    await there_and_back(buses(guarded.settings("alice", servers=door, tls=True, ca_file=guarded.ca)))


async def test_a_certificate_that_nobody_vouches_for(guarded: Guarded, buses: type[KafkaBus]) -> None:
    bus = buses(guarded.settings("alice", servers=f"127.0.0.1:{guarded.tls}", tls=True))
    with pytest.raises(Unavailable, match=r"TLS failed .*CERTIFICATE_VERIFY_FAILED.* check TURNOUT_KAFKA_TLS"):
        await bus.publish(numbered(0))


async def test_a_file_that_is_no_certificate(guarded: Guarded, buses: type[KafkaBus], tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing of the kind")
    bus = buses(guarded.settings("alice", tls=True, ca_file=tmp_path / "ca.pem"))
    with pytest.raises(Invalid, match="TURNOUT_KAFKA_CA_FILE"):
        await bus.publish(numbered(0))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
async def test_a_wrong_password_is_one_clear_error_and_no_storm(
    guarded: Guarded, buses: type[KafkaBus], mechanism: str
) -> None:
    port = free_port()
    settings = guarded.settings("alice", servers=f"127.0.0.1:{port}", mechanism=mechanism, password=SecretStr(SECRET))
    bus = buses(settings)
    said: set[str] = set()
    until = time.monotonic() + 5
    with structlog.testing.capture_logs() as lines:
        async with forwarded(port, f"127.0.0.1:{guarded.plain}") as knocked:
            while time.monotonic() < until:
                for attempt in (bus.publish(numbered(0)), anext(bus.consume(SourceDataAvailable, group=GROUP))):
                    with pytest.raises(Unavailable) as error:
                        await attempt
                    said.add(str(error.value))
                await asyncio.sleep(0.02)
    assert len(said) == 1
    [sentence] = said
    assert f"Kafka at 127.0.0.1:{port} is not available: it refuses the user 'alice'" in sentence
    assert "TURNOUT_KAFKA_PASSWORD" in sentence
    assert 2 <= len(knocked) <= 5, "less than one attempt in a second"
    assert SECRET not in f"{sentence} {lines} {settings!r}"


async def test_a_door_that_wants_a_user(guarded: Guarded, buses: type[KafkaBus]) -> None:
    bus = buses(guarded.settings("alice", username=None, password=None, timeout_seconds=3))
    with pytest.raises(Unavailable, match="TURNOUT_KAFKA_SERVERS, _TLS and _USERNAME"):
        await bus.publish(numbered(0))


async def test_a_user_without_a_password(guarded: Guarded, buses: type[KafkaBus]) -> None:
    with pytest.raises(Invalid, match="TURNOUT_KAFKA_PASSWORD"):
        await buses(guarded.settings("alice", password=None)).publish(numbered(0))


async def test_rights_that_are_missing_are_named_one_by_one(guarded: Guarded, buses: type[KafkaBus]) -> None:
    settings = guarded.settings("bob")
    prefix = settings.topic_prefix
    alice = buses(settings.model_copy(update={"username": "alice"}))
    await alice.publish(numbered(0))
    bus = buses(settings)
    with pytest.raises(Unavailable, match=rf"User:bob has no right on the topic .*{prefix}SourceDataAvailable"):
        await bus.publish(numbered(0))

    guarded.allow("bob", ResourceType.TOPIC, prefix, AclOperation.DESCRIBE, AclOperation.DESCRIBE_CONFIGS)
    async with asyncio.timeout(SECONDS):
        message = await refusal(bus.publish, "writing")
    assert "User:bob has no right" in message
    assert "grant WRITE on the topics" in message
    guarded.allow("bob", ResourceType.TOPIC, prefix, AclOperation.WRITE, AclOperation.READ)
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                await bus.publish(numbered(1))
            except Unavailable:
                await asyncio.sleep(0.1)
            else:
                break
        with pytest.raises(Unavailable, match=r"User:bob has no right on the group .* as g; .*--group"):
            await anext(bus.consume(SourceDataAvailable, group=GROUP))
        with pytest.raises(Unavailable, match="User:bob has no right on the group"):
            await bus.lag(GROUP)
    guarded.allow("bob", ResourceType.GROUP, prefix, AclOperation.READ)
    async with asyncio.timeout(SECONDS):
        while True:  # it is heard without a restart
            try:
                async with aclosing(bus.consume(SourceDataAvailable, group=GROUP)) as deliveries:
                    assert (await anext(deliveries)).received
            except Unavailable:
                await asyncio.sleep(0.1)
            else:
                return


async def refusal(publish: object, word: str) -> str:
    """The sentence in which `publish` is refused while `word`, after other refusals have passed."""
    while True:
        try:
            await publish(numbered(0))  # pyright: ignore[reportCallIssue]
        except Unavailable as error:
            if word in str(error):
                return str(error)
        await asyncio.sleep(0.1)
