"""The history store on Cassandra 5, for many machines.

**Tables by query.** A score lies in the partition of its pipeline and minute (`score`), newest first; `score_by_id`
says where. `joined` names, by version and minute, the scores that have an outcome; outcomes lie beside nothing but
their score's id. An entity's features lie in one partition a day. `slice` and `slice_minute` name the partitions
there are, so that nothing is looked for in vain. What is rarely asked (an entity's scores when it is forgotten, an
outcome whose score never came, what is too old) is found by storage-attached indexes.

**How large a partition gets.** At 200 scores a second of each of 10 pipelines a partition of `score` gets 200 x 60 =
12,000 rows of about a kilobyte: 12 MB; all 2,000 a second of one pipeline make 120,000 rows. `slice_minute` has at
most 1,440 rows, `slice` one a day; an entity measured every second has 86,400 features a day, about 25 MB.

**Once, and whole.** Rows of several partitions cannot be written as one, so each write has an order in which a death
leaves nothing that the same event, coming again, would not complete:

- *A score*: its partition is named → its id is claimed by a lightweight transaction (the first claim stays) → it is
  put into its partition by another, one for all scores of a call that lie there. That one is the commit: before it
  nobody sees the score, and exactly one caller is told that it was new.
- *An outcome*: the score's id is marked (transaction) → if the score is there it is named in `joined` → the outcome is
  kept. That one is the commit. The mark tells a score that comes later to name itself in `joined`: of an outcome and
  a score written at the same moment one sees the other. A name without an outcome is passed over when read.
- *An audit entry*: claimed by its id (the first stays) → put into the trail → marked as kept.

Deletes are plain: Cassandra keeps deleted values on disk until a compaction after the table's `gc_grace_seconds`.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TypeVar
from weakref import WeakValueDictionary

import orjson

from turnout.common.cassandra.connection import Cassandra, Cql, Row, Rows, Tables
from turnout.common.cassandra.settings import CassandraSettings
from turnout.common.events import Event, ObservationReceived, OutcomeObserved, ScoreProduced
from turnout.common.history.port import Audit, Joined, OutcomeKind
from turnout.common.runtime.crash import crash_point

T = TypeVar("T")
E = TypeVar("E", bound=Event)

FORMAT = 1
# Rows of one write, and bytes: a write of one partition may be large, but a node holds it in memory whole.
_TOGETHER, _TOGETHER_BYTES = 100, 100_000
# Partitions that one read names. Each costs its node a read, so that a few dozen are a request and not a scan.
_IDS = 25
# Partitions read side by side when they are nearly empty; one at a time when they are full.
_MOST_SIDE_BY_SIDE = 32
_FULL = 1_000
# Names in `joined` that may be without an outcome, looked at beside those asked for.
_SLACK = 100

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MINUTE = 60_000_000
_MINUTES = 1_440
_LAST = 2**63 - 1
_SCORES, _AUDIT = "scores", "audit"

_CREATE = (
    """CREATE TABLE IF NOT EXISTS score_by_id (score_id text, pipeline text, at bigint, version text, awaited boolean,
    PRIMARY KEY (score_id, pipeline))""",
    """CREATE TABLE IF NOT EXISTS score (pipeline text, minute int, at bigint, score_id text, version text, entity text,
    event text, PRIMARY KEY ((pipeline, minute), at, score_id)) WITH CLUSTERING ORDER BY (at DESC, score_id DESC)""",
    "CREATE INDEX IF NOT EXISTS score_entity ON score (entity) USING 'sai'",
    """CREATE TABLE IF NOT EXISTS joined (pipeline text, version text, minute int, at bigint, score_id text,
    PRIMARY KEY ((pipeline, version, minute), at, score_id)) WITH CLUSTERING ORDER BY (at DESC, score_id DESC)""",
    "CREATE TABLE IF NOT EXISTS joined_version (pipeline text, version text, PRIMARY KEY (pipeline, version))",
    """CREATE TABLE IF NOT EXISTS outcome (pipeline text, score_id text, observed_at bigint, value text, came bigint,
    event text, PRIMARY KEY ((pipeline, score_id), observed_at, value))
    WITH CLUSTERING ORDER BY (observed_at DESC, value ASC)""",
    "CREATE INDEX IF NOT EXISTS outcome_pipeline ON outcome (pipeline) USING 'sai'",
    "CREATE INDEX IF NOT EXISTS outcome_observed ON outcome (observed_at) USING 'sai'",
    """CREATE TABLE IF NOT EXISTS feature (pipeline text, entity text, day int, at bigint, id text, event text,
    PRIMARY KEY ((pipeline, entity, day), at, id)) WITH CLUSTERING ORDER BY (at DESC, id DESC)""",
    """CREATE TABLE IF NOT EXISTS feature_day (pipeline text, entity text, day int,
    PRIMARY KEY ((pipeline, entity), day)) WITH CLUSTERING ORDER BY (day DESC)""",
    "CREATE INDEX IF NOT EXISTS feature_day_pipeline ON feature_day (pipeline) USING 'sai'",
    "CREATE INDEX IF NOT EXISTS feature_day_day ON feature_day (day) USING 'sai'",
    """CREATE TABLE IF NOT EXISTS audit (pipeline text, year int, at bigint, id text, entry text,
    PRIMARY KEY ((pipeline, year), at, id)) WITH CLUSTERING ORDER BY (at DESC, id DESC)""",
    "CREATE TABLE IF NOT EXISTS audit_by_id (id text PRIMARY KEY, entry text, kept boolean)",
    "CREATE TABLE IF NOT EXISTS pipeline (every int, name text, PRIMARY KEY (every, name))",
    """CREATE TABLE IF NOT EXISTS slice (pipeline text, slice text, day int,
    PRIMARY KEY ((pipeline, slice), day)) WITH CLUSTERING ORDER BY (day DESC)""",
    """CREATE TABLE IF NOT EXISTS slice_minute (pipeline text, slice text, day int, minute int,
    PRIMARY KEY ((pipeline, slice, day), minute)) WITH CLUSTERING ORDER BY (minute DESC)""",
)

# Each may be sent again whatever became of it before: a claim that is ours is told from another's by what it says.
_CLAIM = Cql("INSERT INTO score_by_id (score_id, pipeline, at, version) VALUES (?, ?, ?, ?) IF NOT EXISTS", "write")
_CLAIM_AWAITED = Cql(
    "UPDATE score_by_id SET at = ?, version = ? WHERE score_id = ? AND pipeline = ? IF at = null AND version = null",
    "write",
)
_AWAIT = Cql("INSERT INTO score_by_id (score_id, pipeline, awaited) VALUES (?, ?, true) IF NOT EXISTS", "write")
# These two say who was first, and would say something else when sent again.
_PLACE = Cql(
    "INSERT INTO score (pipeline, minute, at, score_id, version, event, entity) VALUES (?, ?, ?, ?, ?, ?, ?)"
    " IF NOT EXISTS",
    "once",
)
_KEEP_OUTCOME = Cql(
    "INSERT INTO outcome (pipeline, score_id, observed_at, value, came, event) VALUES (?, ?, ?, ?, ?, ?) IF NOT EXISTS",
    "once",
)
_WHERE_IS = Cql("SELECT pipeline, at FROM score_by_id WHERE score_id = ?")
_WHERE_ARE = Cql("SELECT score_id, at FROM score_by_id WHERE score_id IN ? AND pipeline = ?")
_DROP_ID = Cql("DELETE FROM score_by_id WHERE score_id = ? AND pipeline = ?", "write")
_DROP_AWAITED = Cql("DELETE FROM score_by_id WHERE score_id = ? AND pipeline = ? IF at = null", "write")

_SCORES_AT = Cql("SELECT at, score_id, event FROM score WHERE pipeline = ? AND minute = ? AND (at, score_id) IN ?")
_PLACED = Cql("SELECT at, score_id FROM score WHERE pipeline = ? AND minute = ? AND (at, score_id) IN ?")
_NEWEST_SCORES = Cql("SELECT event FROM score WHERE pipeline = ? AND minute = ? AND at >= ? LIMIT ?")
_OLDEST_SCORES = Cql("SELECT at, event FROM score WHERE pipeline = ? AND minute = ? ORDER BY at ASC, score_id ASC")
_COUNT_SCORES = Cql("SELECT count(*) AS number FROM score WHERE pipeline = ? AND minute = ?")
_SCORE_IDS = Cql("SELECT at, score_id FROM score WHERE pipeline = ? AND minute = ? AND at < ?")
_ENTITY_SCORES = Cql("SELECT pipeline, minute, at, score_id, version FROM score WHERE entity = ?")
_DROP_SCORE = Cql("DELETE FROM score WHERE pipeline = ? AND minute = ? AND at = ? AND score_id = ?", "write")
_DROP_SCORES = Cql("DELETE FROM score WHERE pipeline = ? AND minute = ? AND at < ?", "write")

_JOIN = Cql("INSERT INTO joined (pipeline, version, minute, at, score_id) VALUES (?, ?, ?, ?, ?)", "write")
_NEWEST_JOINED = Cql(
    "SELECT minute, at, score_id FROM joined WHERE pipeline = ? AND version = ? AND minute = ? AND at >= ? LIMIT ?"
)
_JOINED_IDS = Cql("SELECT score_id FROM joined WHERE pipeline = ? AND version = ? AND minute = ? AND at < ?")
_DROP_JOIN = Cql(
    "DELETE FROM joined WHERE pipeline = ? AND version = ? AND minute = ? AND at = ? AND score_id = ?", "write"
)
_DROP_JOINS = Cql("DELETE FROM joined WHERE pipeline = ? AND version = ? AND minute = ? AND at < ?", "write")
_ADD_VERSION = Cql("INSERT INTO joined_version (pipeline, version) VALUES (?, ?)", "write")
_VERSIONS = Cql("SELECT version FROM joined_version WHERE pipeline = ?")
_DROP_VERSION = Cql("DELETE FROM joined_version WHERE pipeline = ? AND version = ?", "write")

_OUTCOMES = Cql("SELECT observed_at, value, came FROM outcome WHERE pipeline = ? AND score_id = ?")
_OUTCOMES_OF = Cql("SELECT score_id, observed_at, came, event FROM outcome WHERE pipeline = ? AND score_id IN ?")
_COUNT_OUTCOMES = Cql("SELECT count(*) AS number FROM outcome WHERE pipeline = ? AND score_id = ?")
_DROP_OUTCOMES = Cql("DELETE FROM outcome WHERE pipeline = ? AND score_id = ?", "write")
_DROP_OUTCOME = Cql(
    "DELETE FROM outcome WHERE pipeline = ? AND score_id = ? AND observed_at = ? AND value = ?", "write"
)
_OLD_OUTCOMES = Cql("SELECT pipeline, score_id, observed_at, value FROM outcome WHERE observed_at < ?")
_PIPELINE_OUTCOMES = Cql("SELECT score_id FROM outcome WHERE pipeline = ?")

_ADD_FEATURE = Cql("INSERT INTO feature (pipeline, entity, day, at, id, event) VALUES (?, ?, ?, ?, ?, ?)", "write")
_NEWEST_FEATURES = Cql("SELECT event FROM feature WHERE pipeline = ? AND entity = ? AND day = ? AND at <= ? LIMIT ?")
_COUNT_FEATURES = Cql("SELECT count(*) AS number FROM feature WHERE pipeline = ? AND entity = ? AND day = ? AND at < ?")
_DROP_FEATURES = Cql("DELETE FROM feature WHERE pipeline = ? AND entity = ? AND day = ? AND at < ?", "write")
_ADD_FEATURE_DAY = Cql("INSERT INTO feature_day (pipeline, entity, day) VALUES (?, ?, ?)", "write")
_FEATURE_DAYS = Cql("SELECT day FROM feature_day WHERE pipeline = ? AND entity = ? AND day <= ?")
_PIPELINE_FEATURE_DAYS = Cql("SELECT entity, day FROM feature_day WHERE pipeline = ?")
_OLD_FEATURE_DAYS = Cql("SELECT pipeline, entity, day FROM feature_day WHERE day <= ?")
_DROP_FEATURE_DAY = Cql("DELETE FROM feature_day WHERE pipeline = ? AND entity = ? AND day = ?", "write")

_CLAIM_AUDIT = Cql("INSERT INTO audit_by_id (id, entry) VALUES (?, ?) IF NOT EXISTS", "write")
_ADD_AUDIT = Cql("INSERT INTO audit (pipeline, year, at, id, entry) VALUES (?, ?, ?, ?, ?)", "write")
_AUDIT_KEPT = Cql("UPDATE audit_by_id SET kept = true WHERE id = ?", "write")
_NEWEST_AUDIT = Cql("SELECT entry FROM audit WHERE pipeline = ? AND year = ? LIMIT ?")
_AUDITED = Cql("SELECT id, kept FROM audit_by_id WHERE id IN ?")

_ADD_PIPELINE = Cql("INSERT INTO pipeline (every, name) VALUES (0, ?)", "write")
_PIPELINES = Cql("SELECT name FROM pipeline WHERE every = 0")
_ADD_DAY = Cql("INSERT INTO slice (pipeline, slice, day) VALUES (?, ?, ?)", "write")
_ADD_MINUTE = Cql("INSERT INTO slice_minute (pipeline, slice, day, minute) VALUES (?, ?, ?, ?)", "write")
_DAYS = Cql("SELECT day FROM slice WHERE pipeline = ? AND slice = ?")
_MINUTES_OF = Cql("SELECT minute FROM slice_minute WHERE pipeline = ? AND slice = ? AND day = ?")
_DROP_DAY = Cql("DELETE FROM slice WHERE pipeline = ? AND slice = ? AND day = ?", "write")
_DROP_MINUTE = Cql("DELETE FROM slice_minute WHERE pipeline = ? AND slice = ? AND day = ? AND minute = ?", "write")

_TABLES = Tables("history", FORMAT, _CREATE, tuple(cql for cql in globals().values() if isinstance(cql, Cql)))

# A score's pipeline and id.
_Key = tuple[str, str]


class CassandraHistoryStore:
    """A `HistoryStore` in the keyspace that the settings name, opened at the first call."""

    def __init__(self, settings: CassandraSettings) -> None:
        self._db = Cassandra(settings, _TABLES)
        # Transactions on one partition get in each other's way: those of this process queue up instead.
        self._placing: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()
        # Claimed here, and not yet known to be placed: when asked again such a score is new, although it may be there.
        self._unsettled: set[_Key] = set()

    # --- scores -------------------------------------------------------------------------------------------------

    async def add_scores(self, scores: Sequence[ScoreProduced]) -> Sequence[ScoreProduced]:
        """Keep scores; returns those that were not there already."""
        offered: dict[_Key, ScoreProduced] = {}
        for score in scores:
            offered.setdefault((score.pipeline, score.score_id), score)
        if not offered:
            return []
        await self._name_slices({(s.pipeline, _SCORES, _minute(_micros(s.time))) for s in offered.values()})
        crash_point("history-partition-named")
        placing, awaited = await self._claim(offered)
        crash_point("history-score-claimed")
        await self._name_joined([(s.pipeline, s.version, _micros(s.time), s.score_id) for s in awaited])
        partitions: defaultdict[tuple[str, int], list[ScoreProduced]] = defaultdict(list)
        for score in placing:
            partitions[score.pipeline, _minute(_micros(score.time))].append(score)
        new: set[_Key] = set()
        for some in await _all(self._place(*place, there) for place, there in partitions.items()):
            new |= some
        return [score for key, score in offered.items() if key in new]

    async def _claim(self, offered: Mapping[_Key, ScoreProduced]) -> tuple[list[ScoreProduced], list[ScoreProduced]]:
        """Those whose id is theirs, and those of them that an outcome waits for."""
        unknown = {key for key in offered if key not in self._unsettled}
        self._unsettled.update(unknown)
        claims = await self._db.each(
            _CLAIM, [(s.score_id, s.pipeline, _micros(s.time), s.version) for s in offered.values()]
        )
        placing: list[ScoreProduced] = []
        awaited: list[ScoreProduced] = []
        for (key, score), (answer,) in zip(offered.items(), claims, strict=True):
            mine = applied = bool(answer["[applied]"])
            if not applied:
                if answer.get("at") is None:
                    mine = await self._claim_awaited(score)
                else:
                    mine = (answer["at"], answer["version"]) == (_micros(score.time), score.version)
                if mine and answer.get("awaited"):
                    awaited.append(score)
                applied = applied or (mine and answer.get("at") is None)
            if not mine or (key in unknown and not applied):
                self._unsettled.discard(key)
            if mine:
                placing.append(score)
        return placing, awaited

    async def _claim_awaited(self, score: ScoreProduced) -> bool:
        """The id of a score whose outcome came first. Somebody may be faster still."""
        at = _micros(score.time)
        (answer,) = await self._db.rows(_CLAIM_AWAITED, at, score.version, score.score_id, score.pipeline)
        return bool(answer["[applied]"]) or (answer.get("at"), answer.get("version")) == (at, score.version)

    async def _place(self, pipeline: str, minute: int, scores: Sequence[ScoreProduced]) -> set[_Key]:
        """Put claimed scores into their partition; those that were not there."""
        lock = self._placing.setdefault((pipeline, minute), asyncio.Lock())
        new: set[_Key] = set()
        async with lock:
            for some in _written_together(scores):
                new |= await self._place_together(pipeline, minute, some)
        return new

    async def _place_together(
        self, pipeline: str, minute: int, rows: Mapping[tuple[int, str], tuple[object, ...]]
    ) -> set[_Key]:
        missing = dict(rows)
        while missing:
            (answer, *_) = await self._db.together([(_PLACE, row) for row in missing.values()], once=True)
            if answer["[applied]"]:
                break
            # One that is there refuses all of them.
            there = await self._db.rows(_PLACED, pipeline, minute, list(missing))
            for row in there:
                missing.pop((row["at"], row["score_id"]), None)
        keys = {(pipeline, ident) for _, ident in rows}
        new = {(pipeline, ident) for _, ident in missing} | (keys & self._unsettled)
        self._unsettled -= keys
        return new

    async def score(self, score_id: str) -> ScoreProduced | None:
        """One score."""
        claims = [row for row in await self._db.rows(_WHERE_IS, score_id) if row["at"] is not None]
        for claim in sorted(claims, key=lambda row: row["at"]):
            minute = _minute(claim["at"])
            for row in await self._db.rows(_SCORES_AT, claim["pipeline"], minute, [(claim["at"], score_id)]):
                return ScoreProduced.model_validate_json(row["event"])
        return None

    async def scores(
        self, pipeline: str, *, since: datetime | None = None, limit: int = 1000
    ) -> Sequence[ScoreProduced]:
        """A pipeline's newest scores, newest first."""
        first = _micros(since)
        found: Rows = []
        minutes = self._minutes(pipeline, _SCORES, since=first)
        read = lambda minute: self._db.rows(_NEWEST_SCORES, pipeline, minute, first, limit)  # noqa: E731
        async with aclosing(_partition_by_partition(minutes, read)) as parts:
            async for part in parts:
                found += part
                if len(found) >= limit:
                    break
        return await _parsed(ScoreProduced, found[:limit])

    async def count_scores(self, pipeline: str) -> int:
        """How many scores are kept of a pipeline: each partition is counted where it lies."""
        count = 0
        read = lambda minute: self._db.rows(_COUNT_SCORES, pipeline, minute)  # noqa: E731
        async for part in _partition_by_partition(self._minutes(pipeline, _SCORES), read):
            count += sum(row["number"] for row in part)
        return count

    async def all_scores(self, pipeline: str) -> AsyncIterator[Sequence[ScoreProduced]]:
        """Every score kept of a pipeline, oldest first, in pages."""
        read = lambda minute: self._db.rows(_OLDEST_SCORES, pipeline, minute)  # noqa: E731
        page: Rows = []
        minutes = self._minutes(pipeline, _SCORES, oldest_first=True)
        async with aclosing(_partition_by_partition(minutes, read)) as parts:
            async for part in parts:
                page += part
                if len(page) >= _FULL:
                    yield await _parsed(ScoreProduced, page)
                    page = []
        if page:
            yield await _parsed(ScoreProduced, page)

    # --- outcomes -----------------------------------------------------------------------------------------------

    async def add_outcomes(self, outcomes: Sequence[OutcomeObserved]) -> Sequence[OutcomeKind]:
        """Keep outcomes; what each one was, in order. The one observed last is a score's outcome.

        One observed before the score's outcome, or saying the same later, changes nothing: "duplicate".
        """
        of_score: defaultdict[_Key, list[int]] = defaultdict(list)
        for place, outcome in enumerate(outcomes):
            of_score[outcome.pipeline, outcome.score_id].append(place)
        kinds: dict[int, OutcomeKind] = {}

        async def add(key: _Key, places: Sequence[int]) -> None:
            found = await self._add_outcomes_of(key, [outcomes[place] for place in places])
            kinds.update(zip(places, found, strict=True))

        await _all(add(key, places) for key, places in of_score.items())
        return [kinds[place] for place in range(len(outcomes))]

    async def _add_outcomes_of(self, key: _Key, outcomes: Sequence[OutcomeObserved]) -> list[OutcomeKind]:
        pipeline, ident = key
        rows = await self._db.rows(_OUTCOMES, pipeline, ident)
        # By moment, then by coming: the last one counts.
        known = {(row["observed_at"], row["value"]): int(row["came"]) for row in rows}
        kinds: list[OutcomeKind] = []
        scored: bool | None = None
        for outcome in outcomes:
            at, value = _micros(outcome.observed_at), orjson.dumps(outcome.outcome).decode()
            if (at, value) in known:
                kinds.append("duplicate")
                continue
            if scored is None:
                scored = await self._await_score(key)
                crash_point("history-outcome-named")
            before = _last(known)
            known[at, value] = max(time.time_ns() // 1000, max(known.values(), default=0) + 1)
            (answer,) = await self._db.rows(
                _KEEP_OUTCOME, pipeline, ident, at, value, known[at, value], outcome.model_dump_json()
            )
            if not answer["[applied]"]:
                kinds.append("duplicate")
            elif before is None:
                kinds.append("joined" if scored else "unmatched")
            elif _last(known) == before:
                kinds.append("duplicate")
            else:
                kinds.append("corrected" if scored else "unmatched")
        return kinds

    async def _await_score(self, key: _Key) -> bool:
        """Make sure that score and outcome find each other; whether the score is there."""
        pipeline, ident = key
        (answer,) = await self._db.rows(_AWAIT, ident, pipeline)
        if answer["[applied]"] or answer.get("at") is None:
            return False
        await self._name_joined([(pipeline, answer["version"], answer["at"], ident)])
        return True

    async def _name_joined(self, scores: Sequence[tuple[str, str, int, str]]) -> None:
        """Name scores (pipeline, version, moment, id) among those that have an outcome."""
        if not scores:
            return
        await self._db.each(_ADD_VERSION, sorted({(pipeline, version) for pipeline, version, _, _ in scores}))
        await self._name_slices(
            {(pipeline, _joined_slice(version), _minute(at)) for pipeline, version, at, _ in scores}
        )
        await self._db.each(_JOIN, [(pipeline, version, _minute(at), at, i) for pipeline, version, at, i in scores])

    async def joined_of(self, pipeline: str, score_ids: Sequence[str]) -> Sequence[Joined]:
        """Those of the scores that have an outcome, in no particular order."""
        outcomes = await self._outcomes(pipeline, score_ids)
        where = await self._db.each(_WHERE_ARE, [(some, pipeline) for some in _chunks(outcomes, _IDS)])
        places = [(r["at"], r["score_id"]) for rows in where for r in rows if r["at"] is not None]
        return await self._beside(pipeline, places, outcomes)

    async def joined(
        self, pipeline: str, *, version: str | None = None, since: datetime | None = None, limit: int = 1000
    ) -> Sequence[Joined]:
        """Scores that have an outcome, newest score first."""
        if version is not None:
            return await self._joined(pipeline, version, _micros(since), limit)
        versions = [row["version"] for row in await self._db.rows(_VERSIONS, pipeline)]
        found = await _all(self._joined(pipeline, one, _micros(since), limit) for one in versions)
        newest = sorted((j for some in found for j in some), key=lambda j: (j.score.time, j.score.score_id))
        return newest[::-1][:limit]

    async def _joined(self, pipeline: str, version: str, first: int, limit: int) -> list[Joined]:
        found: list[Joined] = []
        minutes = self._minutes(pipeline, _joined_slice(version), since=first)
        # A few names may be without an outcome: whoever was to keep it died.
        read = lambda minute: self._db.rows(_NEWEST_JOINED, pipeline, version, minute, first, limit + _SLACK)  # noqa: E731
        async with aclosing(_partition_by_partition(minutes, read)) as parts:
            async for part in parts:
                places = [(row["at"], row["score_id"]) for row in part]
                for some in _chunks(places, max(_FULL, limit)):
                    outcomes = await self._outcomes(pipeline, [ident for _, ident in some])
                    there = await self._beside(pipeline, [p for p in some if p[1] in outcomes], outcomes)
                    found += sorted(there, key=lambda j: (j.score.time, j.score.score_id), reverse=True)
                if len(found) >= limit:
                    break
        return found[:limit]

    async def _outcomes(self, pipeline: str, score_ids: Iterable[str]) -> dict[str, OutcomeObserved]:
        """The outcome that counts of each score that has one."""
        found = await self._db.each(
            _OUTCOMES_OF, [(pipeline, some) for some in _chunks(dict.fromkeys(score_ids), _IDS)]
        )
        last: dict[str, Row] = {}
        for row in (row for rows in found for row in rows):
            known = last.get(row["score_id"])
            if known is None or (row["observed_at"], row["came"]) > (known["observed_at"], known["came"]):
                last[row["score_id"]] = row
        parsed = await _parsed(OutcomeObserved, list(last.values()))
        return dict(zip(last, parsed, strict=True))

    async def _beside(
        self, pipeline: str, places: Sequence[tuple[int, str]], outcomes: Mapping[str, OutcomeObserved]
    ) -> list[Joined]:
        """The scores at these moments, beside their outcomes."""
        by_minute: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
        for place in places:
            by_minute[_minute(place[0])].append(place)
        asked = [(pipeline, minute, some) for minute, of_it in by_minute.items() for some in _chunks(of_it, _TOGETHER)]
        rows = [row for found in await self._db.each(_SCORES_AT, asked) for row in found]
        scores = await _parsed(ScoreProduced, rows)
        return [Joined(score, outcomes[score.score_id]) for score in scores]

    # --- features and audit -------------------------------------------------------------------------------------

    async def add_features(self, observations: Sequence[ObservationReceived]) -> None:
        """Keep features over time."""
        days = {(o.pipeline, o.entity, _day(_micros(o.event_time))) for o in observations}
        await self._db.each(_ADD_FEATURE_DAY, sorted(days))
        by_partition: defaultdict[tuple[str, str, int], list[ObservationReceived]] = defaultdict(list)
        for o in observations:
            by_partition[o.pipeline, o.entity, _day(_micros(o.event_time))].append(o)
        alone = [
            (*place, _micros(o.event_time), o.id, o.model_dump_json())
            for place, found in by_partition.items()
            for o in found
        ]
        await self._db.each(_ADD_FEATURE, alone)

    async def features(
        self, pipeline: str, entity: str, *, until: datetime | None = None, limit: int = 100
    ) -> Sequence[ObservationReceived]:
        """An entity's observations up to and at `until`, newest first."""
        last = _LAST if until is None else _micros(until)
        found: Rows = []

        async def days() -> AsyncGenerator[int]:
            async with aclosing(self._db.pages(_FEATURE_DAYS, pipeline, entity, min(_day(last), 2**31 - 1))) as pages:
                async for page in pages:
                    for row in page:
                        yield row["day"]

        read = lambda day: self._db.rows(_NEWEST_FEATURES, pipeline, entity, day, last, limit)  # noqa: E731
        async with aclosing(_partition_by_partition(days(), read)) as parts:
            async for part in parts:
                found += part
                if len(found) >= limit:
                    break
        return await _parsed(ObservationReceived, found[:limit])

    async def add_audit(self, *entries: Audit) -> None:
        """Append to the audit trail."""
        claims = await self._db.each(_CLAIM_AUDIT, [(entry.id, _audit_text(entry)) for entry in entries])
        crash_point("history-audit-claimed")
        # The first one stays, also when whoever claimed it died before it was in the trail.
        kept = [
            entry if answer["[applied]"] else _audit(answer["entry"])
            for entry, (answer,) in zip(entries, claims, strict=True)
            if answer["[applied]"] or not answer.get("kept")
        ]
        await self._db.each(_ADD_DAY, sorted({(e.pipeline, _AUDIT, e.at.astimezone(UTC).year) for e in kept}))
        await self._db.each(
            _ADD_AUDIT,
            [(e.pipeline, e.at.astimezone(UTC).year, _micros(e.at), e.id, _audit_text(e)) for e in kept],
        )
        await self._db.each(_AUDIT_KEPT, [(entry.id,) for entry in kept])

    async def audit(self, pipeline: str, *, limit: int = 100) -> Sequence[Audit]:
        """A pipeline's audit trail, newest first."""
        found: list[Audit] = []
        for year in await self._db.rows(_DAYS, pipeline, _AUDIT):
            rows = await self._db.rows(_NEWEST_AUDIT, pipeline, year["day"], limit - len(found))
            found += [_audit(row["entry"]) for row in rows]
            if len(found) >= limit:
                break
        return found

    async def audited(self, ids: Sequence[str]) -> Collection[str]:
        """Those of the ids that are in the audit trail."""
        found = await self._db.each(_AUDITED, [(some,) for some in _chunks(dict.fromkeys(ids), _IDS)])
        return {row["id"] for rows in found for row in rows if row["kept"]}

    # --- removing -----------------------------------------------------------------------------------------------

    async def expire(self, before: datetime) -> int:
        """Remove scores, outcomes and features from before; never the audit trail. How many rows went.

        A score takes its outcomes along; an outcome of a score that stays, stays.
        """
        limit = _micros(before)
        gone = 0
        for row in await self._db.rows(_PIPELINES):
            gone += await self._drop_scores(row["name"], limit)
        gone += await self._drop_outcomes_without_score(limit)
        async for page in self._db.pages(_OLD_FEATURE_DAYS, _day(limit)):
            places = [(row["pipeline"], row["entity"], row["day"]) for row in page]
            gone += await self._drop_features(places, limit)
        return gone

    async def forget(self, pipeline: str, entity: str) -> None:
        """Remove scores, outcomes and features of an entity."""
        async for page in self._db.pages(_ENTITY_SCORES, entity):
            rows = [row for row in page if row["pipeline"] == pipeline]
            places = [(pipeline, row["minute"], row["at"], row["score_id"]) for row in rows]
            ids = [row["score_id"] for row in rows]
            await self._db.each(_DROP_OUTCOMES, [(pipeline, ident) for ident in ids])
            await self._db.each(
                _DROP_JOIN, [(pipeline, row["version"], *place[1:]) for row, place in zip(rows, places, strict=True)]
            )
            await self._db.each(_DROP_ID, [(ident, pipeline) for ident in ids])
            # Last: by it the rest is found again if we die before.
            await self._db.each(_DROP_SCORE, places)
        days = await self._db.rows(_FEATURE_DAYS, pipeline, entity, 2**31 - 1)
        await self._drop_features([(pipeline, entity, row["day"]) for row in days], _LAST)

    async def remove(self, pipeline: str) -> None:
        """Remove scores, outcomes and features of a pipeline; the audit trail stays."""
        await self._drop_scores(pipeline, _LAST)
        async for page in self._db.pages(_PIPELINE_OUTCOMES, pipeline):
            ids = {row["score_id"] for row in page}
            await self._db.each(_DROP_OUTCOMES, [(pipeline, ident) for ident in ids])
            await self._db.each(_DROP_ID, [(ident, pipeline) for ident in ids])
        async for page in self._db.pages(_PIPELINE_FEATURE_DAYS, pipeline):
            await self._drop_features([(pipeline, row["entity"], row["day"]) for row in page], _LAST)

    async def _drop_scores(self, pipeline: str, limit: int) -> int:
        """Scores from before and their outcomes; how many rows went."""
        gone = 0
        for row in await self._db.rows(_VERSIONS, pipeline):
            version = row["version"]
            async for minute in self._minutes(pipeline, _joined_slice(version), until=limit):
                async for page in self._db.pages(_JOINED_IDS, pipeline, version, minute, limit):
                    gone += await self._drop_outcomes(pipeline, [row["score_id"] for row in page])
                await self._db.run(_DROP_JOINS, pipeline, version, minute, limit)
                await self._forget_minute(pipeline, _joined_slice(version), minute, limit)
            if limit == _LAST:
                await self._db.run(_DROP_VERSION, pipeline, version)
        async for minute in self._minutes(pipeline, _SCORES, until=limit):
            async for page in self._db.pages(_SCORE_IDS, pipeline, minute, limit):
                await self._db.each(_DROP_ID, [(row["score_id"], pipeline) for row in page])
                gone += len(page)
            await self._db.run(_DROP_SCORES, pipeline, minute, limit)
            await self._forget_minute(pipeline, _SCORES, minute, limit)
        return gone

    async def _drop_outcomes(self, pipeline: str, score_ids: Sequence[str]) -> int:
        keys = [(pipeline, ident) for ident in score_ids]
        counted = await self._db.each(_COUNT_OUTCOMES, keys)
        await self._db.each(_DROP_OUTCOMES, keys)
        return sum(row["number"] for (row,) in counted)

    async def _drop_outcomes_without_score(self, limit: int) -> int:
        gone = 0
        async for page in self._db.pages(_OLD_OUTCOMES, limit):
            by_pipeline: defaultdict[str, list[Row]] = defaultdict(list)
            for row in page:
                by_pipeline[row["pipeline"]].append(row)
            for pipeline, rows in by_pipeline.items():
                ids = dict.fromkeys(row["score_id"] for row in rows)
                where = await self._db.each(_WHERE_ARE, [(some, pipeline) for some in _chunks(ids, _IDS)])
                scored = {row["score_id"] for found in where for row in found if row["at"] is not None}
                alone = [row for row in rows if row["score_id"] not in scored]
                await self._db.each(
                    _DROP_OUTCOME, [(pipeline, r["score_id"], r["observed_at"], r["value"]) for r in alone]
                )
                gone += len(alone)
                await self._await_no_more(pipeline, {row["score_id"] for row in alone})
        return gone

    async def _await_no_more(self, pipeline: str, score_ids: Collection[str]) -> None:
        """Drop the marks of scores that never came, once none of their outcomes is left."""
        ids = list(score_ids)
        left = await self._db.each(_COUNT_OUTCOMES, [(pipeline, ident) for ident in ids])
        bare = [(ident, pipeline) for ident, (row,) in zip(ids, left, strict=True) if not row["number"]]
        await self._db.each(_DROP_AWAITED, bare)

    async def _drop_features(self, places: Sequence[tuple[str, str, int]], limit: int) -> int:
        counted = await self._db.each(_COUNT_FEATURES, [(*place, limit) for place in places])
        await self._db.each(_DROP_FEATURES, [(*place, limit) for place in places])
        whole = [place for place in places if (place[2] + 1) * _MINUTES * _MINUTE <= limit]
        await self._db.each(_DROP_FEATURE_DAY, whole)
        return sum(row["number"] for (row,) in counted)

    # --- which partitions there are -----------------------------------------------------------------------------

    async def _name_slices(self, minutes: Collection[tuple[str, str, int]]) -> None:
        """Name partitions (pipeline, slice, minute) before anything is in them."""
        days = {(pipeline, of, minute // _MINUTES) for pipeline, of, minute in minutes}
        await _all(
            (
                self._db.each(_ADD_PIPELINE, {(pipeline,) for pipeline, _, _ in minutes}),
                self._db.each(_ADD_DAY, days),
                self._db.each(_ADD_MINUTE, [(pipeline, of, m // _MINUTES, m) for pipeline, of, m in minutes]),
            )
        )

    async def _forget_minute(self, pipeline: str, of: str, minute: int, limit: int) -> None:
        if (minute + 1) * _MINUTE > limit:
            return
        day = minute // _MINUTES
        await self._db.run(_DROP_MINUTE, pipeline, of, day, minute)
        if (day + 1) * _MINUTES * _MINUTE <= limit and not await self._db.rows(_MINUTES_OF, pipeline, of, day):
            await self._db.run(_DROP_DAY, pipeline, of, day)

    async def _minutes(
        self, pipeline: str, of: str, *, since: int = -_LAST, until: int = _LAST, oldest_first: bool = False
    ) -> AsyncGenerator[int]:
        """Partitions of a slice that may hold something from `since` to before `until`, the newest first."""
        days = [row["day"] for row in await self._db.rows(_DAYS, pipeline, of)]
        for day in reversed(days) if oldest_first else days:
            if day < since // _MINUTE // _MINUTES or day > until // _MINUTE // _MINUTES:
                continue
            minutes = [row["minute"] for row in await self._db.rows(_MINUTES_OF, pipeline, of, day)]
            for minute in reversed(minutes) if oldest_first else minutes:
                if since // _MINUTE <= minute <= until // _MINUTE:
                    yield minute

    async def close(self) -> None:
        """Let go of the cluster; what was asked before may fail."""
        await self._db.close()


async def _partition_by_partition(
    places: AsyncIterator[int], read: Callable[[int], Awaitable[Rows]]
) -> AsyncGenerator[Rows]:
    """What `read` finds in each of the places, in their order; many at once while they hold little."""
    width = 1
    while True:
        some = [place async for place in _take(places, width)]
        if not some:
            return
        parts = await _all(read(place) for place in some)
        for part in parts:
            if part:
                yield part
        width = 1 if sum(map(len, parts)) > _FULL else min(2 * width, _MOST_SIDE_BY_SIDE)


async def _take(places: AsyncIterator[int], number: int) -> AsyncGenerator[int]:
    for _ in range(number):
        try:
            yield await anext(places)
        except StopAsyncIteration:
            return


async def _all(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Side by side, in order; a failure is raised when all have ended."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    found: list[T] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
        found.append(answer)
    return found


async def _parsed(kind: type[E], rows: Sequence[Row]) -> list[E]:
    """The rows' events; in a thread if they are so many that the event loop would stand still."""
    if len(rows) < 50:
        return [kind.model_validate_json(row["event"]) for row in rows]
    return await asyncio.to_thread(lambda: [kind.model_validate_json(row["event"]) for row in rows])


def _written_together(scores: Sequence[ScoreProduced]) -> Iterable[dict[tuple[int, str], tuple[object, ...]]]:
    """Rows of one partition by their place in it, in writes that are not too large."""
    some: dict[tuple[int, str], tuple[object, ...]] = {}
    size = 0
    for score in scores:
        at, event = _micros(score.time), score.model_dump_json()
        if some and (len(some) == _TOGETHER or size + len(event) > _TOGETHER_BYTES):
            yield some
            some, size = {}, 0
        # Of no entity: left out at the end, for a null would be kept as a deletion.
        entity = () if score.entity is None else (score.entity,)
        some[at, score.score_id] = (score.pipeline, _minute(at), at, score.score_id, score.version, event, *entity)
        size += len(event)
    if some:
        yield some


def _last(known: Mapping[tuple[int, str], int]) -> str | None:
    """The value of the outcome that counts, of outcomes with the moment of their coming."""
    if not known:
        return None
    _, _, value = max((at, came, value) for (at, value), came in known.items())
    return value


def _audit_text(entry: Audit) -> str:
    return orjson.dumps(
        {
            "id": entry.id, "at": _micros(entry.at), "pipeline": entry.pipeline, "who": entry.who,
            "action": entry.action, "subject": entry.subject, "why": entry.why, "detail": dict(entry.detail),
        }
    ).decode()  # fmt: skip


def _audit(text: str) -> Audit:
    fields = orjson.loads(text)
    return Audit(**{**fields, "at": _EPOCH + fields["at"] * _MICROSECOND})


def _chunks(values: Iterable[T], size: int) -> Iterable[list[T]]:
    rest = iter(values)
    while some := list(islice(rest, size)):
        yield some


def _joined_slice(version: str) -> str:
    return f"joined {version}"


def _micros(moment: datetime | None) -> int:
    """Microseconds since 1970, exact; None is before everything."""
    return -_LAST if moment is None else (moment - _EPOCH) // _MICROSECOND


def _minute(micros: int) -> int:
    return micros // _MINUTE


def _day(micros: int) -> int:
    return micros // _MINUTE // _MINUTES
