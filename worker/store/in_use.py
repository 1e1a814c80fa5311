"""The schema changes while others are at work, and never at their cost.

A revision takes all its locks at once or gives up within a second; then it is tried again. What calls of the older release leave
that were under way meanwhile is mended afterwards.
"""

from collections.abc import Callable
from typing import Final

import structlog
from psycopg2 import errors
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from tenacity import RetryCallState, Retrying, retry_if_exception, retry_if_result, stop_after_delay, wait_fixed, wait_random

from worker.errors import Unreachable

log = structlog.get_logger()

#: Seconds between two tries, so that whoever waited behind us has passed; by chance, because others may come at fixed times.
_PAUSE_S: Final = (0.2, 1.0)
#: Seconds that calls have to end which were under way: each is one statement of a worker, or a caller's transaction.
_CALLS_S: Final = 5.0
#: Rows that one transaction mends.
_BATCH: Final = 500
#: What a revision changes while others use it.
_TABLES: Final = ("processes", "jobs", "subjects", "kinds", "steps", "job_status", "violations")


def insist(engine: Engine, migrating: Callable[[Engine], None], *, patience_s: float) -> None:
    """Migrate, again and again while somebody holds what is needed. Raises Unreachable, which says who, when the time is over."""
    tries = Retrying(
        retry=retry_if_exception(_locked_out),
        stop=stop_after_delay(patience_s),
        wait=wait_random(*_PAUSE_S),
        before_sleep=_say,
        reraise=True,
    )
    try:
        tries(migrating, engine)
    except DBAPIError as error:
        if not _locked_out(error):
            raise
        hint = "end that transaction, stop the workers of the older release, then once more: molecule-worker migrate"
        raise Unreachable(f"migrate schema: {_in_its_way(engine)}; nothing was changed", hint=hint) from error


def mend(engine: Engine) -> None:
    """Mend what calls of the older release left that were under way while the schema changed: their bodies ran on to their ends.

    To be called once the catalogue is written. At any other time it finds nothing.
    """
    with engine.connect() as connection:
        before = _under_way(connection)
    ended = Retrying(
        retry=retry_if_result(bool),
        stop=stop_after_delay(_CALLS_S),
        wait=wait_fixed(0.05),
        retry_error_callback=_say_left,
    )
    ended(lambda: before & _under_way_now(engine))
    for what in ("mend_undefined", "mend_early", "mend_awaited"):
        while (found := _mended(engine, what)) > 0:
            log.info("mended", what=what, rows=found)


def _locked_out(error: BaseException) -> bool:
    """55P03 or 40P01: rolled back because somebody else holds a lock."""
    return isinstance(error, DBAPIError) and isinstance(error.orig, errors.LockNotAvailable | errors.DeadlockDetected)


def _say(state: RetryCallState) -> None:
    log.warning("the schema is in use, migrating again", tries=state.attempt_number, for_s=round(state.seconds_since_start or 0, 1))


def _say_left(state: RetryCallState) -> None:
    log.warning("calls are under way still, mending without them", waited_s=round(state.seconds_since_start or 0, 1))


def _in_its_way(engine: Engine) -> str:
    """Whose transaction has held one of the tables for longest; of what it does, nothing."""
    with engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT a.pid, coalesce(nullif(a.application_name, ''), 'a program') AS program, c.relname, "
                "coalesce(round(extract(epoch FROM clock_timestamp() - a.xact_start)), 0)::int AS seconds "
                "FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_stat_activity a ON a.pid = l.pid "
                "WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
                "AND c.relnamespace = 'worker'::regnamespace AND c.relname = ANY (:tables) AND a.pid <> pg_backend_pid() "
                "ORDER BY a.xact_start, c.relname LIMIT 1"
            ),
            {"tables": list(_TABLES)},
        ).one_or_none()
    if row is None:
        return "its tables were in use at each try"
    return f"{row.program} (pid {row.pid}) has held worker.{row.relname} in a transaction for {row.seconds} s"


def _under_way(connection: Connection) -> frozenset[str]:
    """Transactions that use our tables, and so may still run an older body of a function. A vacuum does not."""
    rows = connection.execute(
        text(
            "SELECT DISTINCT l.virtualtransaction FROM pg_locks l JOIN pg_class c ON c.oid = l.relation "
            "WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND c.relnamespace = 'worker'::regnamespace AND c.relname = ANY (:tables) "
            "AND l.mode IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock') AND l.pid <> pg_backend_pid()"
        ),
        {"tables": list(_TABLES)},
    )
    return frozenset(rows.scalars())


def _under_way_now(engine: Engine) -> frozenset[str]:
    with engine.connect() as connection:
        return _under_way(connection)


def _mended(engine: Engine, what: str) -> int:
    with engine.begin() as connection:
        return len(connection.execute(text(f"SELECT worker.{what}(:most)::text[]"), {"most": _BATCH}).scalar_one())
