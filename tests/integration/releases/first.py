"""The first release: a database as it left it, and a worker process that says what it said, word for word."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import text

from tests.conftest import Database, _admin
from worker.domain import Secret
from worker.engine.kinds import Kind
from worker.store import connect, platform
from worker.store.jobs import MAX_CRASHES, NAMESPACE

CLAIM = (
    "SELECT id::text, kind, subject, args, steps, only_forward, direction, position_, attempt, fence, stop, "
    "error, requested_by, past FROM worker.claim(%s, %s, %s, %s::uuid[])"
)
ENTER = (
    "INSERT INTO worker.processes (name, pid, queues, lease_until) "
    "VALUES (%s, %s, %s, clock_timestamp() + make_interval(secs => %s)) RETURNING id"
)
CATALOGUE = (
    "INSERT INTO worker.kinds (kind, subject_prefix, subject_arg, args, steps, queue, only_forward, supersedes, widens) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)"
)


@contextmanager
def database_of_the_first_release(postgres: str, *kinds: Kind) -> Iterator[Database]:
    """Empty but for the catalogue. At the end the invariants of this release must hold."""
    name = f"t_{uuid4().hex[:12]}"
    admin = _admin(postgres)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = Secret(postgres.format(name))
    engine = connect.open_engine(url, name="tests", size=8)
    script = Path(__file__).with_name("first.sql").read_text()
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA worker"))
        platform.adopt(connection)
        connection.exec_driver_sql(script.replace("%", "%%"))
        platform.make_append_only(connection, "structure_events")
        connection.execute(text("CREATE TABLE worker.alembic_version (version_num varchar(32) PRIMARY KEY)"))
        connection.execute(text("INSERT INTO worker.alembic_version VALUES ('0001')"))
        for kind in kinds:
            machine = kind.machine
            columns = (kind.queue, machine.only_forward, kind.supersedes, list(kind.widens))
            row = (kind.name, kind.subject_prefix, kind.subject_arg, json.dumps(kind.rules()), list(machine.names), *columns)
            connection.exec_driver_sql(CATALOGUE, row)
    yield Database(url, engine)
    with engine.connect() as connection:
        violations = connection.execute(text("SELECT what, which FROM worker.violations")).all()
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()
    assert violations == []


class FirstWorker:
    """A worker process of the first release, as far as the database can tell."""

    def __init__(self, database: Database) -> None:
        self._lease = connect.open_raw(database.url, name="lease first")
        self._work = connect.open_raw(database.url, name="first")
        self.id: int = self._ask(self._lease, ENTER, ("first", 1, ["toy"], 30.0))[0][0]
        self._ask(self._lease, "SELECT pg_advisory_lock(%s, %s)", (NAMESPACE, self.id))

    def claim(self, most: int, *ids: str) -> list[dict[str, Any]]:
        names = [
            "id",
            "kind",
            "subject",
            "args",
            "steps",
            "only_forward",
            "direction",
            "position",
            "attempt",
            "fence",
            "stop",
            "error",
            "requested_by",
            "past",
        ]
        rows = self._ask(self._work, CLAIM, (self.id, ["toy"], most, list(ids) or None))
        return [dict(zip(names, row, strict=True)) for row in rows]

    def beat(self) -> tuple[bool, list[str]]:
        alive, stop = self._ask(self._lease, "SELECT alive, stop::text[] FROM worker.beat(%s, %s)", (self.id, 30_000))[0]
        return alive, stop

    def reap(self) -> int:
        return int(self._ask(self._lease, "SELECT count(*) FROM worker.reap(%s, %s)", (NAMESPACE, MAX_CRASHES))[0][0])

    def ring(self) -> list[tuple[Any, ...]]:
        return self._ask(self._work, "SELECT id::text, kind, queue, lost FROM worker.to_ring(%s, %s)", (100, 5000))

    def apply(self, job: Mapping[str, Any], position: int, **decision: Any) -> list[dict[str, Any]]:
        """One decision, in the first release's shape; what is not said stays as it is."""
        direction = decision.get("direction", job["direction"])
        record = {
            "job": job["id"],
            "fence": job["fence"],
            "direction": direction,
            "position": position,
            "name": job["steps"][position],
            "attempt": job["attempt"],
            "took_ms": 1.5,
            "to_direction": direction,
            "to_position": position,
            "to_attempt": 0,
            **decision,
        }
        replies: list[dict[str, Any]] = self._ask(self._work, "SELECT worker.apply(%s::jsonb)", (json.dumps([record]),))[0][0]
        return replies

    def done(self, job: Mapping[str, Any], position: int) -> list[dict[str, Any]]:
        """A step that held: on to the next, or to the end."""
        if position + 1 == len(job["steps"]):
            return self.apply(job, position, status="done", facts={"by": position}, next="rest", rest="succeeded")
        return self.apply(job, position, status="done", facts={"by": position}, next="go", to_position=position + 1)

    def leave(self) -> None:
        """In good order."""
        self._ask(self._lease, "UPDATE worker.processes SET lease_until = clock_timestamp() WHERE id = %s RETURNING id", (self.id,))
        self.die()

    def die(self) -> None:
        """The session lock goes with the session."""
        self._lease.close()
        self._work.close()

    @staticmethod
    def _ask(connection: Any, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows
