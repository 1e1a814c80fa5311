"""What befalls a Postgres under load, each with what it takes to be over; nobody tells the daemon."""

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from threading import Event
from typing import Any

import psycopg2

from tests.system.house import PATIENCE, House
from tests.system.outages import Postgres
from tests.waiting import until

#: Sessions of the server in all, so that they can be used up.
MOST = 60
_OURS = "datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'molecule-worker %@%'"


def restart(own: Postgres, _house: House) -> str:
    """At once, in the midst of everything."""
    own.restart()
    return "1 restart"


def terminate(own: Postgres, _house: House, times: int = 8) -> str:
    """One session after the other, whosever it is."""
    ended = 0
    with closing(_admin(own)) as admin, admin.cursor() as cursor:
        for _ in range(times):
            cursor.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS} ORDER BY random() LIMIT 1")
            ended += cursor.rowcount
            Event().wait(random.uniform(0.05, 0.2))
    return f"{ended} backends terminated"


def hurry(own: Postgres, house: House) -> str:
    """No statement of a new session may last, unless the session says otherwise."""
    with _set(own, "statement_timeout", "'5ms'") as cursor:
        before = _log(house, "QueryCanceled")
        cursor.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}")
        until(lambda: _log(house, "QueryCanceled") >= before + 3, within=PATIENCE, what="statements that were not given the time")
        cut = _log(house, "QueryCanceled") - before
    return f"{cut} statements cut short"


def lock_up(own: Postgres, house: House) -> str:
    """It turns into a standby, and back."""
    with _set(own, "default_transaction_read_only", "on") as cursor:
        before = _log(house, "start failed")
        cursor.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}")
        until(lambda: _log(house, "start failed") > before, within=PATIENCE, what="a process that could not start")
    return "read-only and back"


def crowd(own: Postgres, house: House) -> str:
    """Somebody else takes every session that there is."""
    others: list[Any] = []
    with closing(_admin(own)) as admin, admin.cursor() as cursor:
        before = _log(house, "start failed")
        cursor.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {_OURS}")
        with suppress(psycopg2.OperationalError):
            while len(others) < MOST:
                others.append(_admin(own))
        until(lambda: _log(house, "start failed") > before, within=PATIENCE, what="a process that found no session")
    for other in others:
        other.close()
    return f"{len(others)} sessions taken"


ALL = (restart, terminate, hurry, crowd, lock_up)


def _log(house: House, words: str) -> int:
    return sum(words in line for line in house.said())


def _admin(own: Postgres) -> Any:
    """A session that no setting of the database touches."""
    options = "-c default_transaction_read_only=off -c statement_timeout=0"
    admin = psycopg2.connect(own.database.url.reveal(), options=options)
    admin.autocommit = True
    return admin


@contextmanager
def _set(own: Postgres, name: str, value: str) -> Iterator[Any]:
    """A setting of the database, for sessions that begin meanwhile; those keep it for as long as they live."""
    with closing(_admin(own)) as admin, admin.cursor() as cursor:
        cursor.execute(f"ALTER DATABASE postgres SET {name} = {value}")
        try:
            yield cursor
        finally:
            cursor.execute(f"ALTER DATABASE postgres RESET {name}")
