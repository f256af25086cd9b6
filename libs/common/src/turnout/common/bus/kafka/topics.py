"""Topics on the cluster: made from the event classes, and checked against them before anything uses one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import structlog
from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from turnout.common.bus.cloudevents import DEAD, MAX_BYTES, event_class
from turnout.common.bus.kafka.settings import KafkaSettings
from turnout.common.bus.kafka.troubles import Refusals, unavailable
from turnout.common.errors import Invalid, Unavailable
from turnout.common.events import REGISTRY

log = structlog.get_logger()

FOREIGN_PARTITIONS = 4
FOREIGN_RETENTION = timedelta(days=30)
# A superseded record of a compacted topic stays this long, for groups that are behind; and is gone after that long.
COMPACTION_LAG = timedelta(days=1)
COMPACTION_LIMIT = timedelta(days=7)
# A foreign message may be larger than an event of ours: it has to arrive to be refused. Its dead letter carries the
# reason on top.
TOPIC_BYTES = 2 * MAX_BYTES
REASON_BYTES = 1024 * 1024
# What a broker takes unless told otherwise (message.max.bytes).
DEFAULT_BYTES = 1_048_588
TOPIC_ALREADY_EXISTS = 36
# Brokers hear of a new topic a moment after its controller has made it.
HEARD_SECONDS = 0.05


@dataclass(frozen=True)
class Wanted:
    """How a topic has to be."""

    partitions: int
    compacted: bool
    configs: Mapping[str, str]


@dataclass(frozen=True)
class Found:
    """How a topic is: its partitions, and the bytes of its largest record batch."""

    partitions: int
    max_bytes: int


class Topics:
    """The cluster's topics by their names in the program; each is looked at once."""

    def __init__(self, settings: KafkaSettings, refusals: Refusals) -> None:
        self._settings = settings
        self._refusals = refusals
        self._known: dict[str, Found] = {}
        self._looking = asyncio.Lock()

    def wire(self, name: str) -> str:
        """The name on the cluster."""
        return self._settings.topic_prefix + name if _ours(name) else name

    def name(self, wire: str) -> str:
        """The name in the program."""
        prefix = self._settings.topic_prefix
        bare = wire.removeprefix(prefix)
        return bare if prefix and bare != wire and _ours(bare) else wire

    async def ready(self, admin: AIOKafkaAdminClient, names: Sequence[str]) -> Mapping[str, Found]:
        """What there is of these topics, after making what is missing.

        Raises `Unavailable` naming the topic, what was found, what is wanted and the fix.
        """
        missing = [name for name in names if name not in self._known]
        for name in missing:
            self._refusals.check(f"topic {name}")
        if missing:
            async with self._looking:
                await self._look(admin, [name for name in missing if name not in self._known])
        return {name: self._known[name] for name in names}

    def known(self, names: Sequence[str]) -> Mapping[str, Found] | None:
        """What is known of these topics; None if one has not been looked at."""
        known = self._known
        return {name: known[name] for name in names} if all(name in known for name in names) else None

    def forget(self, name: str) -> None:
        """Look at the topic again before its next use."""
        self._known.pop(name, None)

    async def _look(self, admin: AIOKafkaAdminClient, names: Sequence[str]) -> None:
        if not names:
            return
        there = await self._partitions(admin)
        lacking = [name for name in names if self.wire(name) not in there]
        if lacking and self._settings.create_topics:
            await self._make(admin, lacking)
            there = await self._appeared(admin, lacking)
        configs = await self._configs(admin, [name for name in names if self.wire(name) in there])
        problem: Unavailable | None = None
        for name in names:
            wrong = self._wrong(name, there.get(self.wire(name)), configs.get(name, {}))
            if wrong is None:
                limit = int(configs.get(name, {}).get("max.message.bytes") or DEFAULT_BYTES)
                self._known[name] = Found(there[self.wire(name)], limit)
                self._refusals.clear(f"topic {name}")
            else:
                problem = Unavailable(f"the topic {self.wire(name)} on Kafka at {self._settings.servers}", wrong)
                self._refusals.note(f"topic {name}", problem)
        if problem is not None:
            raise problem

    async def _appeared(self, admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, int]:
        """What is there, once brokers have heard of the new topics."""
        until = time.monotonic() + self._settings.timeout_seconds / 2
        while True:
            there = await self._partitions(admin)
            if all(self.wire(name) in there for name in names) or time.monotonic() > until:
                return there
            await asyncio.sleep(HEARD_SECONDS)

    async def _partitions(self, admin: AIOKafkaAdminClient) -> dict[str, int]:
        # All of them: to ask for one that is missing makes it, where a broker creates topics by itself.
        found: Iterable[Mapping[str, Any]] = await admin.describe_topics()
        return {topic["topic"]: len(topic["partitions"]) for topic in found if topic["partitions"]}

    async def _configs(self, admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
        if not names:
            return {}
        wires = {self.wire(name): name for name in names}
        answers: Any = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, wire) for wire in wires])
        found: dict[str, dict[str, str]] = {}
        for answer in answers:
            for code, _, _, wire, entries in answer.resources:
                if code == 0:
                    found[wires[wire]] = {entry[0]: entry[1] for entry in entries}
                elif not _foreign(wires[wire]):
                    raise errors.for_code(code)(wire)
        return found

    async def _make(self, admin: AIOKafkaAdminClient, names: Sequence[str]) -> None:
        origins = await self._configs(admin, [name.removesuffix(DEAD) for name in names if _dead_foreign(name)])
        new = [self._new(name, origins.get(name.removesuffix(DEAD), {})) for name in names]
        answer: Any = await admin.create_topics(new)
        for wire, code, *rest in answer.topic_errors:
            if code not in (0, TOPIC_ALREADY_EXISTS):
                error = errors.for_code(code)
                said = f"{rest[0]}" if rest and rest[0] else error.__name__
                problem = unavailable(error(said), self._settings, f"creating the topic {wire}")
                self._refusals.note(f"topic {self.name(wire)}", problem)
                raise problem
        made = [wire for wire, code, *_ in answer.topic_errors if code == 0]
        if made:
            log.info("created topics", topics=made)

    def _new(self, name: str, origin: Mapping[str, str]) -> NewTopic:
        wanted = wanted_of(name)
        configs = dict(wanted.configs)
        if origin.get("max.message.bytes"):
            largest = max(int(origin["max.message.bytes"]) + REASON_BYTES, int(configs["max.message.bytes"]))
            configs["max.message.bytes"] = str(largest)
        factor = self._settings.replication_factor
        # The library takes -1 ("as the broker decides") only beside an assignment, which may be empty.
        assignments: dict[int, list[int]] | None = {} if factor == -1 else None
        return NewTopic(self.wire(name), wanted.partitions, factor, assignments, configs)

    def _wrong(self, name: str, partitions: int | None, configs: Mapping[str, str]) -> str | None:
        """What is wrong with a topic, in words, and the command that mends it."""
        server, wire = f"--bootstrap-server {self._settings.servers}", self.wire(name)
        wanted = wanted_of(name)
        if partitions is None:
            make = f"kafka-topics.sh {server} --create --topic {wire} --partitions {wanted.partitions}" + "".join(
                f" --config {key}={value}" for key, value in wanted.configs.items()
            )
            why = "" if self._settings.create_topics else " (TURNOUT_KAFKA_CREATE_TOPICS is false)"
            return f"it is not there, or may not be described{why}; run: {make}"
        if _foreign(name):
            return None
        if partitions < wanted.partitions:
            return (
                f"it has {partitions} partition(s), {wanted.partitions} are declared; run:"
                f" kafka-topics.sh {server} --alter --topic {wire} --partitions {wanted.partitions}"
            )
        policy = configs.get("cleanup.policy", "")
        if wanted.compacted != ("compact" in policy):
            right = wanted.configs["cleanup.policy"]
            return (
                f"its cleanup.policy is {policy!r}, {right!r} is wanted; run: kafka-configs.sh {server} --alter"
                f" --entity-type topics --entity-name {wire} --add-config cleanup.policy={right}"
            )
        return None


def too_large(name: str, size: int, limit: int) -> Invalid:
    """The record does not fit into its topic."""
    return Invalid(name, f"a record of {size} bytes", fix=f"the topic takes {limit}; name the data instead")


@lru_cache(maxsize=4096)
def wanted_of(name: str) -> Wanted:
    """How the topic of this name has to be: as its event class says, or as is usual for somebody else's."""
    kind = REGISTRY.get(name)
    partitions = FOREIGN_PARTITIONS if kind is None else kind.partitions
    compacted = kind is not None and kind.compacted
    retention = FOREIGN_RETENTION if kind is None else kind.retention
    room = TOPIC_BYTES + (REASON_BYTES if name.endswith(DEAD) else 0)
    configs = {
        "cleanup.policy": "compact" if compacted else "delete",
        "retention.ms": "-1" if retention is None else str(retention // timedelta(milliseconds=1)),
        "max.message.bytes": str(room),
        # A writer with a wrong clock must not decide when a record ends.
        "message.timestamp.type": "LogAppendTime",
    }
    if compacted:
        configs |= {
            "min.compaction.lag.ms": str(COMPACTION_LAG // timedelta(milliseconds=1)),
            "max.compaction.lag.ms": str(COMPACTION_LIMIT // timedelta(milliseconds=1)),
        }
        if retention is not None:
            configs["cleanup.policy"] = "compact,delete"
    return Wanted(partitions, compacted, configs)


def all_topics() -> list[str]:
    """The topic of each event class, and its dead letters."""
    return [name + end for name, kind in sorted(REGISTRY.items()) for end in ("", DEAD) if kind.__module__ == _EVENTS]


_EVENTS = next(iter(REGISTRY.values())).__module__


def _ours(name: str) -> bool:
    return event_class(name) is not None or name.endswith(DEAD)


def _foreign(name: str) -> bool:
    return name not in REGISTRY


def _dead_foreign(name: str) -> bool:
    return name.endswith(DEAD) and event_class(name) is None
