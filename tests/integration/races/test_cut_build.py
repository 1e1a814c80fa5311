from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from psycopg2 import errors
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from tests.conftest import Database
from worker.errors import Unreachable
from worker.images.builds import BuildKey, Builds

KEY = BuildKey("langgraph", "0" * 40, "", "linux/amd64", "classic", "local")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (psycopg2.DatabaseError("server closed the connection unexpectedly"), Unreachable),
        (psycopg2.OperationalError("terminating connection"), Unreachable),
        (errors.NotNullViolation("null"), IntegrityError),
    ],
)
def test_a_build_whose_statement_was_cut_is_tried_again(
    database: Database, raised: psycopg2.Error, expected: type[Exception]
) -> None:
    def cut(*_: Any) -> None:
        raise raised

    # In the driver's place, because the server cannot be told to die in the midst of this very statement.
    event.listen(database.engine, "do_execute", cut)
    with pytest.raises(expected):
        Builds(database.engine, longest_s=60).claim(KEY, 1, str(uuid4()))
    event.remove(database.engine, "do_execute", cut)
