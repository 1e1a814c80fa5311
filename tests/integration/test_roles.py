"""What a role of molecule_worker_client may do, asked with a real login; and what nobody may do."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import ProgrammingError

from tests.conftest import Database
from tests.rows import add_workspace
from tests.toys import ask, remember, state, toy_kind
from worker import embedded
from worker.domain import Secret
from worker.store import connect
from worker.store.migrate import migrate

ENQUEUE = "SELECT job_id::text FROM worker.enqueue('toy.make', jsonb_build_object('id', gen_random_uuid()))"
#: Every function that the contract lets a client call, with the types of its arguments.
CALLABLE = {
    "enqueue(text,jsonb,text,timestamp with time zone,integer,text,text)",
    "cancel(uuid,text,text)",
    "retry(uuid,text,text)",
}


@contextmanager
def login(database: Database, rights: str) -> Iterator[Engine]:
    """A fresh login role with these rights. Roles are the server's, so its name is this test's own."""
    name = f"someone_{uuid4().hex[:8]}"
    with database.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'p'"))
        if rights:
            connection.execute(text(f"GRANT {rights} TO {name}"))
    url = connect.parse(database.url).set(username=name, password="p")
    engine = connect.open_engine(Secret(url.render_as_string(hide_password=False)), name="client", size=2)
    yield engine
    engine.dispose()
    with database.engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {name}"))
        connection.execute(text(f"DROP ROLE {name}"))


@pytest.fixture
def client(database: Database) -> Iterator[Connection]:
    """Logged in as a client, in a transaction."""
    remember(database, toy_kind())
    with login(database, "molecule_worker_client") as engine, engine.connect() as connection:
        yield connection


def refused(connection: Connection, statement: str) -> bool:
    with pytest.raises(ProgrammingError) as error, connection.begin_nested():
        connection.execute(text(statement))
    return isinstance(error.value.orig, InsufficientPrivilege)


def test_a_client_enqueues_in_its_own_transaction(database: Database, client: Connection) -> None:
    gone = client.execute(text(ENQUEUE)).scalar_one()
    client.rollback()
    job = client.execute(text(ENQUEUE)).scalar_one()
    client.commit()

    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT array_agg(id::text) FROM worker.jobs")).scalar_one() == [job]
    assert gone != job


def test_a_client_cancels_and_retries(database: Database, client: Connection) -> None:
    job, failed = ask(database), ask(database)
    with database.engine.begin() as connection:
        made = "UPDATE worker.jobs SET state = 'failed', finished_at = now(), error = '{}' WHERE id = :id"
        connection.execute(text(made), {"id": failed})

    assert client.execute(text("SELECT worker.cancel(:id, 'enough', 'api')"), {"id": job}).scalar_one()
    assert client.execute(text("SELECT worker.retry(:id, 'api')"), {"id": failed}).scalar_one()
    client.commit()

    assert (state(database, job), state(database, failed)) == ("cancelled", "queued")


def test_a_client_reads_the_view_and_hears_announcements(database: Database, client: Connection) -> None:
    client.execute(text("LISTEN worker_jobs"))
    client.commit()
    job = ask(database)

    assert client.execute(text("SELECT id::text FROM worker.job_status")).scalars().all() == [job]
    driver = client.connection.driver_connection
    assert driver is not None
    driver.poll()
    assert [job in notify.payload for notify in driver.notifies] == [True]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM worker.jobs",
        "SELECT * FROM worker.job_events",
        "SELECT * FROM worker.violations",
        "SELECT * FROM worker.ledger",
        "DELETE FROM worker.subjects",
        "INSERT INTO worker.kinds SELECT * FROM worker.kinds",
        "SELECT worker.claim(1, '{toy}', 5)",
        "SELECT worker.apply('[]')",
        "SELECT worker.pause('all', '', 'mine now')",
        "SELECT worker.skip(gen_random_uuid(), 's1', 'r')",
        "SELECT worker.wake('toy:1')",
        "SELECT worker.take_slot('mend', 1000)",
        "SELECT worker.grant_rights()",
        "SELECT * FROM public.workspaces",
        "SELECT * FROM public.workspace_secrets",
        "CREATE TABLE worker.mine (id int)",
    ],
)
def test_a_client_may_do_nothing_else(client: Connection, statement: str) -> None:
    assert refused(client, statement)


def test_a_client_cannot_bend_what_our_functions_call(database: Database, client: Connection) -> None:
    client.execute(text("CREATE TEMP TABLE kinds (kind text, subject_prefix text)"))
    client.execute(
        text("CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT now() - interval ''9 years'''")
    )
    client.execute(text("SET search_path = pg_temp, public"))

    job = client.execute(text(ENQUEUE)).scalar_one()
    client.commit()

    with database.engine.connect() as connection:
        fresh = connection.execute(
            text(
                "SELECT created_at > now() - interval '1 hour' AND run_at > now() - interval '1 hour' FROM worker.jobs WHERE id = :id"
            ),
            {"id": job},
        ).scalar_one()
    assert fresh


def test_a_role_without_rights_may_not_even_look_into_the_schema(database: Database) -> None:
    with login(database, "") as engine, engine.connect() as connection:
        assert refused(connection, "SELECT * FROM worker.job_status")
        assert refused(connection, ENQUEUE)


def test_the_platforms_own_role_still_appends_events_and_cannot_change_them(database: Database) -> None:
    add_workspace(database)
    with login(database, "") as engine:
        name = engine.url.username
        with database.engine.begin() as owner:
            owner.execute(text(f"GRANT SELECT, INSERT, DELETE ON public.structure_events TO {name}"))
        with engine.connect() as connection:
            connection.execute(text("INSERT INTO structure_events (event_type) VALUES ('WORKSPACE_PROVISIONING')"))
            with pytest.raises(ProgrammingError, match="append-only"):
                connection.execute(text("DELETE FROM structure_events"))


def test_every_function_that_runs_as_its_owner_pins_its_search_path(database: Database) -> None:
    with database.engine.connect() as connection:
        found = connection.execute(
            text(
                "SELECT p.proname, coalesce(array_to_string(p.proconfig, ' '), '') AS set FROM pg_proc p "
                "WHERE p.pronamespace = 'worker'::regnamespace AND p.prosecdef"
            )
        ).all()

    assert {"enqueue", "cancel", "retry"} <= {row.proname for row in found}
    assert {row.proname: row.set for row in found if not row.set.startswith("search_path=pg_catalog, pg_temp")} == {}


def test_no_function_is_for_everybody_and_a_client_has_those_of_the_contract(database: Database) -> None:
    with login(database, "molecule_worker_client") as engine, database.engine.connect() as connection:
        callable_ = connection.execute(
            text(
                "SELECT p.oid::regprocedure::text FROM pg_proc p WHERE p.pronamespace = 'worker'::regnamespace "
                "AND has_function_privilege(:role, p.oid, 'EXECUTE')"
            ),
            {"role": engine.url.username},
        ).scalars()
        assert {name.removeprefix("worker.") for name in callable_} == CALLABLE
        readable = connection.execute(
            text(
                "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'worker'::regnamespace AND c.relkind IN ('r', 'v') "
                "AND has_table_privilege(:role, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')"
            ),
            {"role": engine.url.username},
        ).scalars()
        assert list(readable) == ["job_status"]


@pytest.fixture
def server() -> Iterator[str]:
    """A Postgres on which no role of ours was ever made: its address with a `{}` for the user and one for the database."""
    folder = Path(tempfile.mkdtemp(prefix="molecule-worker-tests-", dir="/var/lib" if os.geteuid() == 0 else None))
    service = embedded.start_postgres(folder)
    yield service.url.reveal().replace("postgres:@/postgres?", "{}:@/{}?")
    service.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_who_may_not_create_roles_migrates_all_the_same_and_the_rights_come_once_the_role_is_there(server: str) -> None:
    def run(user: str, database: str, *statements: str) -> Any:
        engine = connect.open_engine(Secret(server.format(user, database)), name="tests", size=1)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            *_, answer = [connection.execute(text(statement)) for statement in statements]
            found = answer.scalar() if answer.returns_rows else None
        engine.dispose()
        return found

    def bring_to_head() -> None:
        engine = connect.open_engine(Secret(server.format("plain", "theirs")), name="tests", size=1)
        migrate(engine)
        engine.dispose()

    reads = "SELECT has_table_privilege('molecule_worker_client', 'worker.job_status', 'SELECT')"
    run("postgres", "postgres", "CREATE ROLE plain LOGIN", "CREATE DATABASE theirs OWNER plain")
    bring_to_head()
    assert run("plain", "theirs", "SELECT count(*) FROM pg_roles WHERE rolname = 'molecule_worker_client'") == 0

    run("postgres", "theirs", "CREATE ROLE molecule_worker_client NOLOGIN")
    assert run("plain", "theirs", reads) is False
    bring_to_head()
    assert run("plain", "theirs", reads) is True
