import psycopg2
import pytest
from psycopg2 import errors
from sqlalchemy.exc import DBAPIError

from worker.store.connect import lost

CUT = psycopg2.DatabaseError("server closed the connection unexpectedly")


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (CUT, True),
        (psycopg2.OperationalError("no route"), True),
        (psycopg2.InterfaceError("connection already closed"), True),
        (errors.AdminShutdown("terminating"), True),
        (errors.ReadOnlySqlTransaction("a standby"), True),
        (errors.QueryCanceled("statement timeout"), False),
        (errors.LockNotAvailable("lock timeout"), False),
        (errors.DeadlockDetected("deadlock"), False),
        (errors.NotNullViolation("null"), False),
        (errors.UndefinedColumn("no such column"), False),
        (KeyError("job"), False),
    ],
)
def test_a_database_that_went_away_is_told_from_one_that_refuses(error: Exception, gone: bool) -> None:
    assert lost(error) is gone
    assert lost(DBAPIError("SELECT 1", None, error)) is gone
