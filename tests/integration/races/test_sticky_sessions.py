import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.conftest import Database
from tests.proxy import engine_through


@pytest.mark.parametrize(
    ("name", "value", "statement"),
    [
        ("statement_timeout", "'20ms'", "SELECT pg_sleep(0.1)"),
        ("default_transaction_read_only", "on", "CREATE TABLE public.written (job uuid)"),
    ],
)
def test_a_session_that_began_under_a_bad_setting_is_not_kept_beyond_it(
    database: Database, name: str, value: str, statement: str
) -> None:
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as admin, engine_through(database.url) as pool:
        admin.execute(text(f"ALTER DATABASE {database.engine.url.database} SET {name} = {value}"))
        with pytest.raises(DBAPIError), pool.begin() as connection:
            connection.execute(text(statement))
        admin.execute(text(f"ALTER DATABASE {database.engine.url.database} RESET {name}"))
        # Its settings are the session's for life, so only another session can do it.
        with pool.begin() as connection:
            connection.execute(text(statement))
