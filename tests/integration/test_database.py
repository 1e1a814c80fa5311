import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from tests.conftest import Database


@pytest.mark.parametrize(
    "statement", ["UPDATE structure_events SET event_type = 'x'", "DELETE FROM structure_events", "TRUNCATE structure_events"]
)
def test_structure_events_refuses_change_in_the_database_itself(database: Database, statement: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO structure_events (event_type) VALUES ('WORKSPACE_PROVISIONING')"))

    with pytest.raises(ProgrammingError, match="append-only"), database.engine.begin() as connection:
        connection.execute(text(statement))
