import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from tests.conftest import Database
from worker.errors import Misconfigured
from worker.store.migrate import refuse_other, revisions


@pytest.mark.parametrize(
    "statement", ["UPDATE structure_events SET event_type = 'x'", "DELETE FROM structure_events", "TRUNCATE structure_events"]
)
def test_structure_events_refuses_change_in_the_database_itself(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO structure_events (event_type) VALUES ('WORKSPACE_PROVISIONING')"))

    with pytest.raises(ProgrammingError, match="append-only"), database.engine.begin() as connection:
        connection.execute(text(statement))


def test_the_names_of_the_files_are_alembics_revisions() -> None:
    config = Config()
    config.set_main_option("script_location", "worker.store:migrations")
    script = ScriptDirectory.from_config(config)

    assert revisions() == [one.revision for one in reversed(list(script.walk_revisions()))]


def test_a_database_at_head_is_at_this_releases_newest_revision(database: Database) -> None:
    with database.engine.connect() as connection:
        assert refuse_other(connection) == revisions()[-1]


@pytest.mark.parametrize(("stored", "said"), [("9999", "newer release's"), ("", "must be at")])
def test_another_revision_is_refused(database: Database, stored: str, said: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.alembic_version SET version_num = :stored"), {"stored": stored or "0000"})
        if not stored:
            connection.execute(text("DELETE FROM worker.alembic_version"))
    with database.engine.connect() as connection, pytest.raises(Misconfigured, match=said):
        refuse_other(connection)


def test_sessions_see_what_others_commit_and_never_sit_in_a_transaction_for_ever(database: Database) -> None:
    with database.engine.connect() as connection:
        shown = {
            name: connection.execute(text(f"SHOW {name}")).scalar_one()
            for name in ("transaction_isolation", "idle_in_transaction_session_timeout")
        }

    assert shown == {"transaction_isolation": "read committed", "idle_in_transaction_session_timeout": "1min"}
