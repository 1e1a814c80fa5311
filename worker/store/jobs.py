"""Claims, decisions and liveness in SQL: the only module that writes a job's state.

Each class holds psycopg2 connections of its own, because these statements are the hot ones: one `unnest`ed statement
for what several jobs have ready costs a tenth of one statement each, and a session lock lives on its connection.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from threading import Lock
from time import monotonic
from typing import Any

import psycopg2
import structlog
from psycopg2.errors import LockNotAvailable
from psycopg2.extensions import connection as RawConnection  # noqa: N812  because it is a class
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from worker.domain import Secret
from worker.engine.drive import Record
from worker.engine.lease import Beat
from worker.engine.machine import Children, Direction, Facts
from worker.engine.walk import Claimed, PastStep, Reply
from worker.errors import Fenced, JournalLost, Retryable, Unreachable, WorkerError
from worker.store import connect

log = structlog.get_logger()

#: First key of the session locks of processes; any constant that is ours ("mw" and 1).
NAMESPACE = 0x6D7701
#: A step that killed or froze its process this often is not tried again by itself. A process that left in doubt, or because its
#: server had gone, does not count: no step is to blame for that.
MAX_CRASHES = 5
#: Milliseconds that a hot statement may take before its connection is given up.
_STATEMENT_MS = 10_000
#: Milliseconds that a batch waits for rows which somebody else has locked.
_LOCK_MS = 50


class Locked(Exception):
    """A caller's open transaction holds a row: each decision must wait for its own, and none for another's."""


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """A database that does not answer, or has no time, is Unreachable; a wrong statement stays what it is."""
    try:
        yield
    except psycopg2.Error as error:
        if not connect.lost(error) and not connect.answered(error):
            raise
        raise Unreachable(f"{what}: the database did not answer") from error


class Register:
    """This process's row and its session lock. A beat has as long as the lease, and not a second more.

    `knows`: the step names of each kind of this release, so that it is offered what it is able to do; `host` is where it runs.
    """

    def __init__(
        self, url: Secret, *, name: str, pid: int, lease_s: float, host: str = "", knows: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._connection = connect.open_raw(url, name=f"lease {name}")
        self._lease_ms = int(lease_s * 1000)
        with _translated("register process"), self._connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = %s", (self._lease_ms,))
            cursor.execute(
                "SELECT worker.enter(%s, %s, %s, %s, %s::jsonb)",
                (name, pid, host, self._lease_ms, json.dumps({kind: list(steps) for kind, steps in (knows or {}).items()})),
            )
            self.process_id: int = _one(cursor)[0]
            cursor.execute("SELECT pg_advisory_lock(%s, %s)", (NAMESPACE, self.process_id))

    def beat(self) -> Beat:
        """Renew the lease."""
        with _translated("renew lease"), self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT alive, stop::text[], draining, running::text[] FROM worker.beat(%s, %s)", (self.process_id, self._lease_ms)
            )
            alive, stop, draining, running = _one(cursor)
        return Beat(alive, frozenset(stop), draining, frozenset(running))

    def reap(self) -> Mapping[str, int]:
        """Take work back from dead processes. Answers how many jobs by what showed it: session (killed) or lease (silent)."""
        with _translated("reap"), self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT CASE WHEN by_lease THEN 'lease' ELSE 'session' END, count(*) FROM worker.reap(%s, %s) GROUP BY 1",
                (NAMESPACE, MAX_CRASHES),
            )
            return dict(cursor.fetchall())

    def resign(self) -> None:
        """Say in the row that this process leaves in doubt. Not once the lease is over, because whoever froze must count."""
        with _translated("resign"), self._connection.cursor() as cursor:
            cursor.execute(
                "UPDATE worker.processes SET in_doubt = true WHERE id = %s AND lease_until > clock_timestamp()", (self.process_id,)
            )

    def close(self) -> None:
        """End the lease now; closing the session frees the lock."""
        with _translated("end lease"), self._connection.cursor() as cursor:
            cursor.execute("UPDATE worker.processes SET lease_until = clock_timestamp() WHERE id = %s", (self.process_id,))
        self._connection.close()


class Claims:
    """Takes jobs for one process. Safe to call from several threads."""

    def __init__(self, url: Secret, *, process_id: int, name: str) -> None:
        self._url = url
        self._name = name
        self._process_id = process_id
        self._guard = Lock()
        self._connection: RawConnection | None = None
        self._asked: float | None = None  #: monotonic seconds; while a claim is on its way
        self._after = ""  # the organisation that was served last: the next claim begins behind it

    def overdue(self, answer_s: float) -> bool:
        """Whether a claim has been on its way for longer than that: its connection stands still, and nobody will say so."""
        asked = self._asked
        return asked is not None and monotonic() > asked + answer_s

    def claim(self, queues: Sequence[str], most: int, ids: Sequence[str] | None = None) -> list[Claimed]:
        """Up to `most` due jobs, or those of `ids` that are due.

        Raises Unreachable, and JournalLost when the connection broke: the jobs may be ours then, and nobody would know which.
        """
        with self._guard, _translated("claim jobs"), self._on_its_way():
            connection = self._open()
            try:
                with connection.cursor() as cursor:
                    cursor.execute(
                        "SELECT id::text, kind, subject, args, steps, only_forward, direction, position_, attempt, fence, stop, "
                        "error, requested_by, traceparent, past, org, family, waited_ms, age_ms "
                        "FROM worker.claim(%s, %s, %s, %s::uuid[], %s)",
                        (self._process_id, list(queues), most, list(ids) if ids is not None else None, self._after),
                    )
                    claimed = [_claimed(row) for row in cursor.fetchall()]
            except psycopg2.Error as error:
                self._connection = None
                if connection.closed:
                    raise JournalLost("claim jobs: the connection broke before the answer") from error
                connection.close()
                raise
            if claimed and ids is None:
                self._after = claimed[-1].org
        return claimed

    def close(self) -> None:
        """Close the connection."""
        with self._guard:
            if self._connection is not None:
                self._connection.close()

    @contextmanager
    def _on_its_way(self) -> Iterator[None]:
        self._asked = monotonic()
        try:
            yield
        finally:
            self._asked = None

    def _open(self) -> RawConnection:
        if self._connection is None or self._connection.closed:
            self._connection = connect.open_raw(self._url, name=f"claims {self._name}")
            with self._connection.cursor() as cursor:
                cursor.execute("SET statement_timeout = %s", (_STATEMENT_MS,))
        return self._connection


def _claimed(row: Sequence[Any]) -> Claimed:
    ident, kind, subject, args, steps, only_forward, direction, position, attempt, fence, stop, error, requested_by = row[:13]
    traceparent, past, org, family, waited_ms, age_ms = row[13:]
    return Claimed(
        id=ident,
        kind=kind,
        subject=subject,
        args=args,
        steps=steps,
        only_forward=only_forward,
        direction=Direction(direction),
        position=position,
        attempt=attempt,
        fence=fence,
        stop=stop,
        error=error,
        requested_by=requested_by,
        traceparent=traceparent,
        org=org,
        family={int(spread): Children(**counts) for spread, counts in (family or {}).items()},
        past=[
            PastStep(
                Direction(p["direction"]), p["position"], p["name"], p["status"], p["facts"], timedelta(milliseconds=p["ago_ms"])
            )
            for p in past or ()
        ],
        waited=timedelta(milliseconds=waited_ms),
        age=timedelta(milliseconds=age_ms),
    )


class Applier:
    """Sends batches of decisions on one held connection. Not thread-safe: `worker.store.journal` owns it."""

    def __init__(self, url: Secret, *, name: str) -> None:
        self._url = url
        self._name = name
        self._connection: RawConnection | None = None

    def send(self, records: Sequence[Record]) -> dict[str, Reply]:
        """Apply all; the answer holds each job that was not fenced.

        A lost connection is tried once more: a decision that was in fact taken is either written again to the same
        effect (its fence still holds) or is no longer running and so is refused. Raises JournalLost when that fails, too,
        Locked when a row is held by somebody else, and psycopg2.Error for a record that the database refuses.
        """
        try:
            return self._send(records)
        except LockNotAvailable as error:
            raise Locked from error
        except (psycopg2.Error, Unreachable) as error:
            if not isinstance(error, Unreachable) and not connect.lost(error) and not connect.answered(error):
                raise
            self.close()
            self._connection = None
        try:
            with _translated("apply decisions"):
                return self._send(records)
        except Unreachable as error:
            if isinstance(error.__cause__, LockNotAvailable):
                raise Locked from error
            raise JournalLost("apply decisions: the database did not answer") from error

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()

    def _send(self, records: Sequence[Record]) -> dict[str, Reply]:
        if self._connection is None or self._connection.closed:
            self._connection = connect.open_raw(self._url, name=f"journal {self._name}")
            with self._connection.cursor() as cursor:
                cursor.execute("SET statement_timeout = %s", (_STATEMENT_MS,))
                cursor.execute("SET lock_timeout = %s", (_LOCK_MS,))
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT worker.apply(%s::jsonb)", (json.dumps(records),))
            return _replies(_one(cursor)[0])


class Transactions:
    """Decisions whose step also writes our own tables: the rows and the checkpoint commit together or not at all."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        """Run `rows` and apply the decision in one transaction. Raises JournalLost, and whatever `rows` refuses with."""
        try:
            return self._once(record, rows)
        except DBAPIError as error:
            if not connect.lost(error):
                raise
            return self._look_again(record, rows)

    def _once(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        try:
            with self._engine.begin() as connection:
                # Rows of the platform before the job's own: the order in which everybody locks.
                more = rows(connection)
                full = {**record, "facts": {**(record.get("facts") or {}), **(more or {})}}
                answer = connection.execute(text("SELECT worker.apply(CAST(:d AS jsonb))"), {"d": json.dumps([full])}).scalar_one()
                replies = _replies(answer)
                if record["job"] not in replies:
                    raise Fenced(  # noqa: TRY301  because leaving the block by an error is what rolls back
                        "apply decision: the subject is held by somebody else"
                    )
                return replace(replies[str(record["job"])], facts=more or {})
        except Fenced:
            # Raised above only to roll back what `rows` wrote.
            return None
        except WorkerError:
            raise
        except Exception as error:
            if connect.lost(error):
                raise
            # Rolled back for certain, so a bug costs an attempt and not the process; so does a lock that was not to be had in time.
            _say_broken(record, error)
            if connect.answered(error):
                raise Retryable(f"run {record['name']}: the database had no time for it", code="database_busy") from error
            raise Retryable(
                f"run {record['name']}: internal error", hint="the worker's log has the cause", code="internal"
            ) from error

    def _look_again(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        """The connection broke, maybe after the commit: what is written decides whether `rows` runs again."""
        try:
            with self._engine.begin() as connection:
                # A commit that is still on its way holds the job's row: wait for it, and only then look.
                connection.execute(text("SELECT FROM worker.jobs WHERE id = :job FOR NO KEY UPDATE"), {"job": record["job"]})
                done = connection.execute(
                    text(
                        "SELECT j.args, CASE WHEN j.superseded_by IS NOT NULL THEN 'superseded' "
                        "WHEN j.cancel_requested_at IS NOT NULL THEN 'cancelled' END AS stop, s.facts, "
                        "CASE WHEN j.cancel_requested_at IS NOT NULL THEN j.error END AS error "
                        "FROM worker.steps s JOIN worker.jobs j ON j.id = s.job_id "
                        "WHERE s.job_id = :job AND s.direction = :direction AND s.position = :position "
                        "AND s.status = 'done' AND s.fence = :fence"
                    ),
                    {key: record[key] for key in ("job", "direction", "position", "fence")},
                ).one_or_none()
            return Reply(done.stop, done.args, done.facts, error=done.error) if done is not None else self._once(record, rows)
        except DBAPIError as error:
            if not connect.lost(error) and not connect.answered(error):
                raise
            raise JournalLost("apply decision: the database did not answer") from error


def _say_broken(record: Record, error: Exception) -> None:
    if isinstance(error, DBAPIError):
        # Without the trace, because the driver quotes the values of a statement.
        cause, sqlstate = type(error.orig).__name__, getattr(error.orig, "pgcode", None)
        log.error("rows refused", job=record["job"], step=record["name"], cause=cause, sqlstate=sqlstate)
    else:
        log.error("rows broke", job=record["job"], step=record["name"], exc_info=error)


def _replies(answer: Sequence[Any]) -> dict[str, Reply]:
    return {row["job"]: Reply(row["stop"], row["args"], again=row["again"], error=row["error"]) for row in answer}


def _one(cursor: Any) -> tuple[Any, ...]:
    row: tuple[Any, ...] = cursor.fetchone()
    return row
