"""Slots of schedules in Postgres: taken by whoever inserts the row, shown with what came of them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from worker.engine.clock import Enqueue, Outcome, Schedule, Turn
from worker.errors import Refused, Unreachable
from worker.store import connect, requests

log = structlog.get_logger()


@contextmanager
def answered(what: str) -> Iterator[None]:
    """A database that went away is Unreachable; a wrong statement stays what it is."""
    try:
        yield
    except DBAPIError as error:
        if not connect.lost(error):
            raise
        raise Unreachable(f"{what}: the database did not answer") from error


class DatabaseSlots:
    """Implements `worker.engine.clock.Slots`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, schedule: Schedule) -> Turn:
        """The current slot, if it is ours now. The job of an enqueue is stored in the same transaction, or neither is."""
        with answered("take slot"), self._engine.begin() as connection:
            row = connection.execute(
                text("SELECT taken, next_s FROM worker.take_slot(:name, :every_ms)"),
                {"name": schedule.name, "every_ms": round(schedule.every.total_seconds() * 1000)},
            ).one()
            if row.taken is not None and isinstance(schedule.what, Enqueue):
                _enqueue(connection, schedule, schedule.what, row.taken)
        return Turn(row.taken, row.next_s)

    def end(self, schedule: Schedule, slot: datetime, outcome: Outcome) -> None:
        """Store what a sweep did."""
        with answered("end slot"), self._engine.begin() as connection:
            _end(connection, schedule, slot, outcome)


def last_slots(connection: Connection) -> Mapping[str, Mapping[str, Any]]:
    """Of each schedule that ever came round the newest slot: slot, started_at, finished_at, job_id, outcome, ago_s."""
    rows = connection.execute(
        text(
            "SELECT DISTINCT ON (schedule) schedule, slot, started_at, finished_at, job_id::text, outcome, "
            "extract(epoch FROM clock_timestamp() - started_at)::float8 AS ago_s FROM worker.slots ORDER BY schedule, slot DESC"
        )
    ).mappings()
    return {row["schedule"]: dict(row) for row in rows}


def _enqueue(connection: Connection, schedule: Schedule, what: Enqueue, slot: datetime) -> None:
    try:
        # A refusal undoes no more than the enqueue: the slot is taken, or each tick would ask again.
        with connection.begin_nested():
            job, created = requests.enqueue(
                connection,
                what.kind,
                what.args,
                idempotency_key=f"{schedule.name}:{slot.astimezone(UTC).isoformat()}",
                requested_by=f"clock:{schedule.name}",
            )
    except Refused as error:
        log.error("scheduled job refused", schedule=schedule.name, reason=error.message)  # noqa: TRY400
        _end(connection, schedule, slot, {"error": error.code})
    else:
        _end(connection, schedule, slot, {"enqueued": int(created)}, job)


def _end(connection: Connection, schedule: Schedule, slot: datetime, outcome: Outcome, job: str | None = None) -> None:
    connection.execute(
        text("SELECT worker.end_slot(:name, :slot, CAST(:outcome AS jsonb), CAST(:job AS uuid))"),
        {"name": schedule.name, "slot": slot, "outcome": json.dumps(dict(outcome)), "job": job},
    )
