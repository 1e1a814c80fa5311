from threading import Barrier, Thread
from uuid import uuid4

from sqlalchemy import text

from tests.conftest import Database
from tests.toys import ask, remember, toy_kind
from worker.errors import WorkerError
from worker.store.jobs import Claims, Register

MAKE, PAINT = toy_kind(), toy_kind("toy.paint")
_JOBS = 150


def test_taking_over_and_claiming_never_wait_for_each_other_in_a_circle(database: Database) -> None:
    remember(database, MAKE, PAINT)
    with database.engine.begin() as connection:
        connection.execute(text(f"ALTER DATABASE {database.engine.url.database} SET deadlock_timeout = '50ms'"))
    refused: list[WorkerError] = []
    for _ in range(4):
        _round(database, refused)

    assert refused == []


def _round(database: Database, refused: list[WorkerError]) -> None:
    dead = Register(database.url, name="dead", pid=1, lease_s=60)
    before = Claims(database.url, process_id=dead.process_id, name="dead")
    subjects = [str(uuid4()) for _ in range(_JOBS)]
    for subject in subjects:
        ask(database, "toy.make", subject)
    assert len(before.claim(["toy"], _JOBS)) == _JOBS
    for subject in subjects:
        ask(database, "toy.paint", subject)
    before.close()
    dead.close()
    register = Register(database.url, name="next", pid=1, lease_s=60)
    claims = Claims(database.url, process_id=register.process_id, name="next")
    start = Barrier(2)

    def claim() -> None:
        start.wait()
        try:
            claims.claim(["toy"], 1000)
        except WorkerError as error:
            refused.append(error)

    other = Thread(target=claim)
    other.start()
    start.wait()
    try:
        register.reap()
    except WorkerError as error:
        refused.append(error)
    other.join()
    claims.close()
    register.close()
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.subjects SET job_id = NULL"))
        connection.execute(
            text("UPDATE worker.jobs SET state = 'cancelled', process_id = NULL, finished_at = now(), parked = false")
        )
