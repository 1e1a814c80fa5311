"""One build per key for all worker processes: the row of `worker.builds` is the lock, the log and the memory of failures."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DatabaseError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection

from worker.errors import Unreachable, WorkerError
from worker.images.faults import TemplateFault

REMEMBERED_S: Final = 600  #: a deterministic failure is answered from memory for this long, seconds

# The holder is dead when its process has no lease, or when no build can last that long. A job that comes back to
# its own build takes it again, because a job is driven by one thread at a time.
_CLAIM = text("""
INSERT INTO worker.builds AS b (key, runtime, sha, host, state, process_id, job_id)
VALUES (:key, :runtime, :sha, :host, 'building', :process, CAST(NULLIF(:job, '') AS uuid))
ON CONFLICT (key) DO UPDATE SET state = 'building', process_id = excluded.process_id, job_id = excluded.job_id,
    reference = NULL, error = NULL, log = '', started_at = clock_timestamp(), finished_at = NULL
WHERE CASE b.state
    WHEN 'built' THEN true
    WHEN 'failed' THEN NOT coalesce((b.error ->> 'remembered')::boolean, false)
                       OR b.finished_at < clock_timestamp() - make_interval(secs => :remembered)
    ELSE NOT EXISTS (SELECT FROM worker.processes p WHERE p.id = b.process_id AND p.lease_until > clock_timestamp())
         OR b.started_at < clock_timestamp() - make_interval(secs => :longest)
         OR (b.process_id = excluded.process_id AND b.job_id = excluded.job_id)
    END
RETURNING b.started_at
""")
_LOOK = text(
    "SELECT state, error, extract(epoch FROM clock_timestamp() - started_at)::float8 AS age FROM worker.builds WHERE key = :key"
)
_HELD = "WHERE key = :key AND process_id = :process AND started_at = :started AND state = 'building'"
_LOG = text(f"UPDATE worker.builds SET log = :log {_HELD}")  # noqa: S608  built from constants
_FINISH = text(
    "UPDATE worker.builds SET state = :state, reference = :reference, error = CAST(:error AS jsonb), log = :log,"  # noqa: S608  built from constants
    f" finished_at = clock_timestamp() {_HELD}"
)
# By id, because that is the order in which everybody locks jobs.
_WAKE = text("""
SELECT worker.wake(j.subject) FROM (
    SELECT subject FROM worker.jobs WHERE state = 'waiting' AND strpos(waiting_for, :key) > 0 ORDER BY id) AS j
""")


@dataclass(frozen=True, slots=True)
class BuildKey:
    """What makes two builds the same build."""

    runtime: str
    sha: str
    prefix: str
    platform: str
    builder: str
    host: str

    @property
    def text(self) -> str:
        """16 hex digits: the first 8 bytes of SHA-256 over the parts."""
        parts = f"{self.runtime}|{self.sha}|{self.prefix}|{self.platform}|{self.builder}|{self.host}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Mine:
    """The claim was won. `started` tells this build from an earlier and a later one of the same key."""

    key: str
    process: int
    started: datetime


@dataclass(frozen=True, slots=True)
class Theirs:
    """Somebody else is building, since `age_s` seconds."""

    age_s: float


@dataclass(frozen=True, slots=True)
class Over:
    """It ended between two looks: look at the engine again."""


class Builds:
    """The table. Raises Unreachable when Postgres does not answer."""

    def __init__(self, engine: Engine, *, longest_s: float) -> None:
        self._engine = engine
        self._longest_s = longest_s

    def claim(self, key: BuildKey, process: int, job_id: str) -> Mine | Theirs | Over:
        """Take the build, or learn who has it. Raises the remembered failure when it is known not to build."""
        values = {"key": key.text, "runtime": key.runtime, "sha": key.sha, "host": key.host, "process": process, "job": job_id}
        with _answering("claim build"), self._engine.begin() as connection:
            started = connection.scalar(_CLAIM, {**values, "remembered": REMEMBERED_S, "longest": self._longest_s})
            if started is not None:
                return Mine(key.text, process, started)
            return _standing(connection, key)

    def write_log(self, mine: Mine, log: str) -> None:
        """Replace the log of a build in progress."""
        with self._engine.begin() as connection:
            connection.execute(_LOG, {"key": mine.key, "process": mine.process, "started": mine.started, "log": log})

    def finish(self, mine: Mine, log: str, outcome: str | WorkerError) -> None:
        """Close the row with the reference or the failure and wake who waits, in one transaction.

        Changes nothing when the build was taken over by another process.
        """
        failure = outcome if isinstance(outcome, WorkerError) else None
        values = {
            "key": mine.key,
            "process": mine.process,
            "started": mine.started,
            "log": log,
            "state": "failed" if failure else "built",
            "reference": None if failure else outcome,
            "error": json.dumps(_as_json(failure)) if failure else None,
        }
        with _answering("finish build"), self._engine.begin() as connection:
            connection.execute(_FINISH, values)
            connection.execute(_WAKE, {"key": mine.key})


@contextmanager
def _answering(what: str) -> Iterator[None]:
    """A database that does not answer is Unreachable; one that refuses stays what it is."""
    try:
        yield
    except (DatabaseError, InterfaceError, NoConnection) as error:
        # The bare class is what the driver raises for a statement whose connection is cut while it runs; its other children refuse.
        if isinstance(error, DatabaseError) and type(error) not in {DatabaseError, OperationalError}:
            raise
        raise Unreachable(f"{what}: the database did not answer", hint="is Postgres running?") from error


def _standing(connection: Connection, key: BuildKey) -> Theirs | Over:
    row = connection.execute(_LOOK, {"key": key.text}).one_or_none()
    if row is not None and row.state == "failed" and row.error["remembered"]:
        raise _from_json(row.error)
    if row is None or row.state != "building":
        return Over()
    return Theirs(row.age)


def _as_json(error: WorkerError) -> dict[str, Any]:
    remembered = isinstance(error, TemplateFault)
    return {"code": error.code, "message": error.message, "hint": error.hint, "blame": str(error.blame), "remembered": remembered}


def _from_json(stored: dict[str, Any]) -> TemplateFault:
    return TemplateFault(stored["message"], hint=stored["hint"], code=stored["code"])
