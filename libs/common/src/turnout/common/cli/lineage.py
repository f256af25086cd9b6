"""`turnout lineage ID`: from a score back to the file, or from any id on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlparse

import orjson
import typer
from rich.tree import Tree

from turnout.common.cli.console import Home, environment, run, wide
from turnout.common.cli.describe import metrics
from turnout.common.errors import Invalid, Unknown
from turnout.common.events import (
    REGISTRY,
    Batch,
    DataSegregated,
    Event,
    FeaturesGenerated,
    ModelReady,
    ModelTrained,
    RawDataExtracted,
    ScoreProduced,
)
from turnout.common.runtime.environment import Environment

_MADE = (RawDataExtracted, FeaturesGenerated, DataSegregated, ModelTrained, ModelReady)
_KINDS = ("raw", "features", "split")


def lineage(
    ident: Annotated[
        str,
        typer.Argument(metavar="ID", help="Of a score, a version, a run, a split, a feature set, a batch or an event."),
    ],
    home: Home = None,
    pipeline: Annotated[str | None, typer.Option(help="Whose version it is, if several pipelines have one.")] = None,
) -> None:
    """Print where something comes from: score, version, split, feature set, batches, files."""

    async def work() -> None:
        async with environment(home) as env:
            known = await gather(env)
            score = await find_score(env, ident)
            if score is not None:
                known.scores[score.score_id] = score
            tree = await asyncio.to_thread(known.tree, ident, pipeline)
        wide.print(tree, markup=False)

    run(work)


@dataclass
class Known:
    """What was made, by the ids that lead to it."""

    scores: dict[str, ScoreProduced] = field(default_factory=dict)
    versions: dict[tuple[str, str], ModelReady] = field(default_factory=dict)
    candidates: list[ModelTrained] = field(default_factory=list)
    splits: dict[str, DataSegregated] = field(default_factory=dict)
    features: dict[str, FeaturesGenerated] = field(default_factory=dict)
    batches: dict[str, Batch] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Remember what an event says was made."""
        self.events[event.id] = event
        match event:
            case ModelReady():
                self.versions[event.pipeline, event.version] = event
            case ModelTrained():
                self.candidates.append(event)
            case DataSegregated():
                self.splits[event.split_id] = event
            case FeaturesGenerated():
                self.features[event.feature_set_id] = event
            case RawDataExtracted():
                self.batches.update((batch.batch_id, batch) for batch in event.batches)
            case _:
                pass

    def tree(self, ident: str, pipeline: str | None) -> Tree:  # noqa: PLR0911 (one return a kind of id)
        """The way back from `ident`. Raises `Invalid` if nothing here has that id. Reads the source files."""
        if ident in self.scores:
            return self._score(self.scores[ident])
        if ident in self.splits:
            return self._split(ident)
        if ident in self.features:
            return self._feature_set(ident)
        if ident in self.batches:
            return self._batch(ident)
        owner, _, version = ident.rpartition("/")
        owners = [p for p, v in self.versions if v == (version or ident) and p == (owner or pipeline or p)]
        if len(owners) > 1:
            raise Invalid(
                "ID", f"several pipelines have a version {version}", fix=f"for example: {owners[0]}/{version}"
            )
        if owners:
            return self._version(owners[0], version)
        of_run = [c for c in self.candidates if c.run_id == ident]
        if of_run:
            return self._run(of_run)
        event = self.events.get(ident)
        if event is not None:
            return self._event(event)
        raise Invalid(
            "ID", f"nothing here is called '{ident}'", fix="take the `score_id` of an answer, or `PIPELINE/VERSION`"
        )

    def _score(self, score: ScoreProduced) -> Tree:
        when = score.time.astimezone().isoformat(sep=" ", timespec="seconds")
        tree = Tree(f"score {score.score_id}: {score.value}, by {score.served_by} at {when}")
        if score.served_by != "baseline":
            tree.add(self._version(score.pipeline, score.version))
            return tree
        prior = tree.add("baseline: no version answered in time, so the training data's prior did")
        for attempt in score.attempts:
            prior.add(self._version(score.pipeline, attempt.version))
        return tree

    def _version(self, pipeline: str, version: str) -> Tree:
        event = self.versions.get((pipeline, version))
        if event is None:
            return Tree(f"version {pipeline}/{version}: not known here (any more)")
        tree = Tree(f"version {pipeline}/{version}: {event.algorithm}, {metrics(event.metrics)}")
        tree.add(f"file {event.file.uri} sha256 {event.file.sha256[:12]}…, run {event.run_id or 'unknown'}")
        tree.add(self._split(event.split_id))
        return tree

    def _run(self, candidates: list[ModelTrained]) -> Tree:
        tree = Tree(f"run {candidates[0].run_id}: {', '.join(c.algorithm for c in candidates)}")
        tree.add(self._split(candidates[0].split_id))
        return tree

    def _split(self, ident: str) -> Tree:
        event = self.splits.get(ident)
        if event is None:
            return Tree(f"split {ident or '?'}: not known here (any more)")
        tree = Tree(f"split {ident}: " + ", ".join(f"{part.name} {part.rows} rows" for part in event.parts))
        tree.add(self._feature_set(event.feature_set_id))
        return tree

    def _feature_set(self, ident: str) -> Tree:
        event = self.features.get(ident)
        if event is None:
            return Tree(f"feature set {ident}: not known here (any more)")
        unlabelled = f", {event.rows_unlabelled} without a label left out" if event.rows_unlabelled else ""
        tree = Tree(f"feature set {ident}: {event.rows} rows{unlabelled}")
        for batch in event.batch_ids:
            tree.add(self._batch(batch))
        return tree

    def _batch(self, ident: str) -> Tree:
        batch = self.batches.get(ident)
        if batch is None:
            return Tree(f"batch {ident}: not known here (any more)")
        counts = f"{batch.rows_read} rows read = {batch.rows_written} written + {batch.rows_quarantined} quarantined"
        tree = Tree(f"batch {ident}: {counts}")
        tree.add(f"file {batch.uri} sha256 {batch.sha256[:12]}…{_state(batch)}")
        return tree

    def _event(self, event: Event) -> Tree:
        tree = Tree(f"event {event.id}: {event.topic()} of {event.pipeline}")
        match event:
            case ModelReady():
                tree.add(self._version(event.pipeline, event.version))
            case ModelTrained() | DataSegregated():
                tree.add(self._split(event.split_id))
            case FeaturesGenerated():
                tree.add(self._feature_set(event.feature_set_id))
            case RawDataExtracted():
                for batch in event.batches:
                    tree.add(self._batch(batch.batch_id))
            case _:
                pass
        return tree


async def gather(env: Environment) -> Known:
    """Everything that was made and is still known: by the lake's manifests, and by the bus."""
    known = Known()
    for name in env.pipelines.names() or await _pipelines(env):
        for event in await asyncio.to_thread(_manifested, env, name):
            known.add(event)
    for kind in _MADE:
        async for received in env.bus.replay(kind):
            try:
                known.add(received.event())
            except Invalid:
                continue
    return known


async def find_score(env: Environment, ident: str) -> ScoreProduced | None:
    """A score from the history, or from the bus if monitoring has not seen it yet."""
    score = await env.history.score(ident)
    if score is not None:
        return score
    async for received in env.bus.replay(ScoreProduced):
        if received.record.value is not None and ident.encode() in received.record.value:
            event = received.event()
            if isinstance(event, ScoreProduced) and event.score_id == ident:
                return event
    return None


async def _pipelines(env: Environment) -> list[str]:
    with suppress(Unknown):
        await env.pipelines.declared("")  # there is none; asking reads the topic
    return env.pipelines.names()


def _manifested(env: Environment, pipeline: str) -> Iterable[Event]:
    """Events that the lake keeps with its data sets: they outlive the bus's retention."""
    found: list[Event] = []
    for kind in _KINDS:
        for manifest in env.lake.manifests(kind, pipeline):
            event_class = REGISTRY.get(manifest.topic or "")
            if event_class is not None and manifest.event is not None:
                found.append(event_class.model_validate(orjson.loads(manifest.event)))
    return found


def _state(batch: Batch) -> str:
    """Whether the file is still what was read."""
    parsed = urlparse(batch.uri)
    path = Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            digest = sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError:
        return " (the file is gone)"
    return " (unchanged)" if digest.hexdigest() == batch.sha256 else " (the file has changed since)"
