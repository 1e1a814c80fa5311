from uuid import uuid4

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from tests.conftest import Database
from tests.proxy import between, engine_through
from tests.toys import remember, toy_kind
from worker.store import requests

KIND = toy_kind()


def enqueue(caller: Engine, subject: str, key: str) -> tuple[str, bool]:
    with caller.begin() as connection:
        return requests.enqueue(connection, KIND.name, {"id": subject}, idempotency_key=key)


@pytest.mark.parametrize(("said", "committed"), [(b"worker.enqueue(", False), (b"COMMIT\x00", True)], ids=["statement", "commit"])
def test_an_enqueue_whose_reply_was_lost_is_found_by_its_key(database: Database, said: bytes, committed: bool) -> None:
    remember(database, KIND)
    subject = str(uuid4())
    with between(database) as (proxy, url), engine_through(url) as caller:
        loss = proxy.lose(said)
        enqueue(caller, str(uuid4()), "the one that is spared")
        with pytest.raises(DBAPIError):
            enqueue(caller, subject, "order 1")
        assert loss.happened == 1

        job, created = enqueue(caller, subject, "order 1")
        assert created is not committed
        assert enqueue(caller, subject, "order 1") == (job, False)
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM worker.jobs").scalar_one() == 2
