"""A replica that was promoted knows no session lock of those who were connected before, and its postmaster is older than they are."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from tests.conftest import Database
from tests.toys import ask, remember, state, toy_kind
from tests.waiting import until
from worker.store.jobs import NAMESPACE, Claims, Register

KIND = toy_kind()


@pytest.fixture
def survivor(database: Database) -> Iterator[Register]:
    """The process that looks after the dead."""
    register = Register(database.url, name="survivor", pid=2, lease_s=30)
    yield register
    register.close()


def dies(database: Database) -> str:
    """The job of a process whose lease goes on and whose session is gone."""
    remember(database, KIND)
    job = ask(database)
    dead = Register(database.url, name="dead", pid=1, lease_s=30, knows={KIND.name: KIND.machine.names})
    claims = Claims(database.url, process_id=dead.process_id, name="dead")
    assert [claimed.id for claimed in claims.claim(["toy"], 1)] == [job]
    claims.close()
    dead._connection.close()
    query = text("SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND classid = :ns AND objid = :id")
    with database.engine.connect() as connection:
        until(lambda: connection.execute(query, {"ns": NAMESPACE, "id": dead.process_id}).scalar_one(), what="the session is gone")
    return job


def test_a_session_that_is_gone_shows_a_death_on_the_server_where_its_process_entered(
    database: Database, survivor: Register
) -> None:
    job = dies(database)

    assert survivor.reap() == {"session": 1}
    assert state(database, job) == "waiting"


@pytest.mark.parametrize(
    "server", ["pg_postmaster_start_time() - interval '1 day'", "NULL"], ids=["another server", "nobody knows"]
)
def test_on_another_server_only_the_lease_counts(database: Database, survivor: Register, server: str) -> None:
    job = dies(database)
    with database.engine.begin() as connection:
        connection.execute(text(f"UPDATE worker.processes SET server_started_at = {server} WHERE name = 'dead'"))

    assert survivor.reap() == {}
    assert state(database, job) == "running"
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.processes SET lease_until = now() - interval '1 second' WHERE name = 'dead'"))
    assert survivor.reap() == {"lease": 1}
