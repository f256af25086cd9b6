"""Puts scoring together."""

from __future__ import annotations

from fastapi import FastAPI

from turnout.common.events import BatchScoringRequested, EntityForgotten, ScoreRequested
from turnout.common.runtime.environment import Environment
from turnout.common.runtime.service import Reaction, Service
from turnout.common.telemetry import release
from turnout.scoring.adapters.admission import TrialProcess
from turnout.scoring.adapters.batch import score
from turnout.scoring.adapters.cache import FolderCache
from turnout.scoring.adapters.outbox import SqliteOutbox
from turnout.scoring.adapters.runners import OnnxRunners
from turnout.scoring.http import routes
from turnout.scoring.http.direct import DirectScores
from turnout.scoring.http.protocol import Protocol
from turnout.scoring.http.scores import Scores
from turnout.scoring.reactions.answering import Answering
from turnout.scoring.reactions.asking import Asking
from turnout.scoring.reactions.batch import Batches
from turnout.scoring.reactions.feed import Feed
from turnout.scoring.reactions.fleet import Fleet
from turnout.scoring.reactions.forgetting import Forgetting
from turnout.scoring.reactions.relay import Relay
from turnout.scoring.reactions.requests import Requests
from turnout.scoring.reactions.turns import Turns
from turnout.scoring.settings import ScoringSettings

NAME = "scoring"
_MIB = 1024 * 1024


def build(environment: Environment, settings: ScoringSettings | None = None) -> Service:
    """The service, its settings from the environment's variables unless given."""
    given = settings or ScoringSettings()
    outbox = SqliteOutbox(environment.home / "scoring" / f"outbox-{given.worker}.sqlite", synchronous=given.durability)
    fleet = Fleet(
        bus=environment.bus,
        lake=lambda: environment.lake,
        outbox=outbox,
        cache=FolderCache(environment.home / "scoring" / "models"),
        admission=TrialProcess(
            seconds=given.admission_seconds, memory=given.memory_mb * _MIB, size=given.model_mb * _MIB
        ),
        runners=OnnxRunners(memory=given.memory_mb * _MIB),
        now=environment.now,
        name=f"{NAME}-{given.worker}",
        spare=given.spare,
    )
    feed = Feed(environment.pipelines)
    relay = Relay(outbox, environment.bus, fleet.ready, feed)
    answering = Answering(fleet, outbox, now=environment.now, reserve=given.reserve_ms / 1000)
    asking = Asking(fleet, lambda: environment.online, seconds=given.features_ms / 1000)
    batches = Batches(
        fleet=fleet,
        lake=lambda: environment.lake,
        pipelines=environment.pipelines,
        executor=lambda: environment.executor,
        score=score,
        roots=environment.settings.source_roots,
        now=environment.now,
    )
    app = FastAPI(
        title="Turnout scoring",
        version=release(),
        description="Asks a pipeline's versions, and never answers late because one is slow.",
    )
    routes.add(
        app,
        scores=Scores(answering, asking, outbox, lambda: environment.history, environment.now),
        protocol=Protocol(fleet, answering),
        keys=environment.keys,
    )

    def waiting_for() -> list[str]:
        waiting = fleet.waiting_for()
        if outbox.trouble is not None:
            waiting.append(f"the outbox: {outbox.trouble}")
        if relay.trouble is not None:
            waiting.append(f"the bus, to take the scores that wait: {relay.trouble}")
        return waiting

    async def close() -> None:
        await fleet.close()
        await relay.drain()
        await outbox.close()

    return Service(
        name=NAME,
        reactions=[
            Reaction(
                "requests",
                [ScoreRequested],
                Requests(
                    fleet,
                    answering,
                    asking,
                    pipelines=environment.pipelines,
                    outbox=outbox,
                    feed=feed,
                    now=environment.now,
                ),
            ),
            Reaction("batches", [BatchScoringRequested], batches, long=True),
            Reaction("forget", [EntityForgotten], Forgetting(outbox, environment.bus, environment.pipelines)),
        ],
        app=app,
        background=[fleet.follow, relay.run],
        follows=fleet.follows,
        waiting_for=waiting_for,
        direct=DirectScores(fleet, Turns(outbox, now=environment.now), environment.keys),
        close=close,
    )
