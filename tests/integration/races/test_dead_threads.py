from threading import Event

import pytest
from sqlalchemy import text

from tests.conftest import Database
from tests.toys import Stage, process, remember, toy_kind

KIND = toy_kind()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", ["beat(int, int)", "claim(int, text[], int, uuid[], text)"])
def test_a_process_that_cannot_beat_or_claim_leaves(database: Database, stage: Stage, name: str) -> None:
    remember(database, KIND)
    left = Event()
    with process(database, stage, KIND, left=left, lease_s=1.5):
        with database.engine.begin() as connection:
            connection.execute(text(f"ALTER FUNCTION worker.{name} RENAME TO away"))
        assert left.wait(3), "the thread is dead and the process is not"
