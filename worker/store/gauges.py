"""What the database says of the work at this moment. Every statement is bounded: indexes only, and no count beyond 10,000."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

#: Rows that are looked at in each index. Beyond that a gauge says "at least".
MOST: Final = 10_000
#: Milliseconds: who scrapes asks again, and a database in trouble is not helped by another long statement.
_BUDGET_MS: Final = 2_000
#: Milliseconds for the invariants, which look at every job that is kept.
_INVARIANTS_MS: Final = 20_000

# A sequential scan would read what is at rest, too.
_SET: Final = text(
    "SELECT set_config('statement_timeout', :ms, true), set_config('lock_timeout', '1s', true), "
    "set_config('enable_seqscan', 'off', true)"
)
_READY_NOW: Final = text(
    "SELECT kind, state, count(*) AS n, extract(epoch FROM clock_timestamp() - min(run_at))::float8 AS age, "
    "extract(epoch FROM clock_timestamp() - min(run_at) FILTER (WHERE rung_at IS NULL))::float8 AS unrung "
    "FROM (SELECT kind, state, run_at, rung_at FROM worker.jobs WHERE state IN ('queued', 'waiting') AND due AND NOT parked "
    "AND NOT paused LIMIT :most) AS found WHERE run_at <= clock_timestamp() GROUP BY kind, state"
)
# The limit is on what is looked at and not on what is found: jobs_later, jobs_process, jobs_queued, jobs_paused.
_OTHERS: Final = text(
    "SELECT state, count(*) AS n FROM ("
    "(SELECT CASE state WHEN 'queued' THEN 'delayed' ELSE state END AS state FROM worker.jobs "
    "WHERE state IN ('queued', 'waiting') AND NOT due LIMIT :most) UNION ALL "
    "(SELECT state FROM worker.jobs WHERE state = 'running' LIMIT :most) UNION ALL "
    "(SELECT CASE WHEN parked THEN 'parked' END FROM worker.jobs WHERE state = 'queued' LIMIT :most) UNION ALL "
    "(SELECT 'paused' FROM worker.jobs WHERE paused LIMIT :most)) AS found WHERE state IS NOT NULL GROUP BY state"
)
_BLOCKED: Final = text(
    "SELECT kind, count(*) AS n FROM (SELECT kind FROM worker.jobs WHERE state = 'blocked' LIMIT :most) AS found GROUP BY kind"
)
_ALIVE: Final = text("SELECT count(*) FROM worker.processes WHERE lease_until > clock_timestamp()")
_SERVED: Final = text(
    "SELECT EXISTS (SELECT FROM worker.processes WHERE lease_until > clock_timestamp() AND :queue = ANY (queues))"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """One look. Ages are seconds, counts at most `MOST` for each state."""

    ready_age: Mapping[str, float]  #: by kind: how long the oldest job has been due
    relay_lag: float  #: how long the oldest due job has not been rung for
    states: Mapping[str, int]
    blocked: Mapping[str, int]  #: by kind
    alive: int  #: worker processes


def look(connection: Connection) -> Standing:
    """Raises SQLAlchemy's errors, also when it takes too long."""
    _limit(connection, _BUDGET_MS)
    ready = connection.execute(_READY_NOW, {"most": MOST}).all()
    states = dict.fromkeys(("queued", "waiting", "running", "blocked", "delayed", "parked", "paused"), 0)
    for state, n in connection.execute(_OTHERS, {"most": MOST}).all():
        states[state] += n
    ages: dict[str, float] = {}
    for row in ready:
        states[row.state] += row.n
        ages[row.kind] = max(row.age, ages.get(row.kind, 0.0))
    blocked = {row.kind: row.n for row in connection.execute(_BLOCKED, {"most": MOST})}
    states["blocked"] = sum(blocked.values())
    lag = max((row.unrung for row in ready if row.unrung is not None), default=0.0)
    return Standing(ages, lag, states, blocked, int(connection.execute(_ALIVE).scalar_one()))


def served(connection: Connection, queue: str) -> bool:
    """Whether a living worker process takes jobs from this queue."""
    _limit(connection, _BUDGET_MS)
    return bool(connection.execute(_SERVED, {"queue": queue}).scalar_one())


def violations(connection: Connection) -> int:
    """How many rows `worker.violations` has. It looks at all jobs, so ask seldom."""
    connection.execute(text("SELECT set_config('statement_timeout', :ms, true)"), {"ms": f"{_INVARIANTS_MS}ms"})
    return int(connection.execute(text("SELECT count(*) FROM worker.violations")).scalar_one())


def _limit(connection: Connection, milliseconds: int) -> None:
    connection.execute(_SET, {"ms": f"{milliseconds}ms"})
