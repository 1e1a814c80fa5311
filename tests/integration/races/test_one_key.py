"""One idempotency key means one job, also for two who use it at the same moment and have not committed yet."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text

from tests.conftest import Database
from tests.toys import ask, remember, toy_kind
from tests.waiting import until
from worker.errors import Refused
from worker.store import requests

KIND = toy_kind()


def use(connection: Connection, subject: str) -> tuple[str, bool]:
    return requests.enqueue(connection, KIND.name, {"id": subject}, idempotency_key="k")


def second(database: Database, subject: str) -> tuple[str, bool]:
    with database.engine.begin() as connection:
        return use(connection, subject)


def waits(database: Database) -> bool:
    with database.engine.connect() as connection:
        return bool(connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


def at_once(database: Database, first: str, then: str, end: Callable[[Connection], None]) -> tuple[str, tuple[str, bool]]:
    """What two get that use the key before either has committed; the first one's transaction ends by `end`."""
    with ThreadPoolExecutor() as threads, database.engine.connect() as connection:
        job, _ = use(connection, first)
        other = threads.submit(second, database, then)
        until(lambda: waits(database) or other.done(), what="the second waits")
        end(connection)
        return job, other.result(timeout=10)


@pytest.mark.parametrize("joins", ["first", "second"])
def test_a_key_that_joins_one_job_and_would_create_another_is_refused_to_whoever_comes_second(
    database: Database, joins: str
) -> None:
    remember(database, KIND)
    live, fresh = str(uuid4()), str(uuid4())
    ask(database, subject=live)
    first, then = (live, fresh) if joins == "first" else (fresh, live)

    with pytest.raises(Refused) as refused:
        at_once(database, first, then, Connection.commit)

    assert refused.value.code == "idempotency_key_reused"
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM worker.aliases")).scalar_one() == 1
        assert use(connection, first)[1] is False


@pytest.mark.parametrize("live", [False, True], ids=["created", "joined"])
def test_two_who_want_the_same_with_one_key_get_one_job(database: Database, live: bool) -> None:
    remember(database, KIND)
    subject = str(uuid4())
    if live:
        ask(database, subject=subject)

    job, other = at_once(database, subject, subject, Connection.commit)

    assert other == (job, False)


def test_a_key_whose_first_use_was_rolled_back_is_the_second_ones(database: Database) -> None:
    remember(database, KIND)
    live, fresh = str(uuid4()), str(uuid4())
    ask(database, subject=live)

    _, (job, created) = at_once(database, live, fresh, Connection.rollback)

    assert created
    assert second(database, fresh) == (job, False)


def test_a_key_that_joined_means_the_job_it_joined(database: Database) -> None:
    remember(database, KIND)
    subject = str(uuid4())
    job = ask(database, subject=subject)

    assert second(database, subject) == (job, False)
    with database.engine.begin() as connection:
        requests.cancel(connection, job, "enough", requested_by="test")
    assert second(database, subject) == (job, False)


def test_a_key_of_the_first_release_stands_in_its_job_and_still_means_it(database: Database) -> None:
    remember(database, KIND)
    subject = str(uuid4())
    job, _ = second(database, subject)
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM worker.aliases"))
        requests.cancel(connection, job, "enough", requested_by="test")

    assert second(database, subject) == (job, False)
    with pytest.raises(Refused):
        second(database, str(uuid4()))
