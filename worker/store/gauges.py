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
_READY: Final = "j.state IN ('queued', 'waiting') AND j.due AND NOT j.parked AND NOT j.paused"
#: Queues that are looked for, one probe of jobs_ready each.
_QUEUES: Final = 100
# What is ready, by queue, and what only a claim would find due: where no process lives, nobody does. now() and not the clock,
# because an index cannot be searched for a volatile function's result. The queues share the limit.
_UNSERVED: Final = text(
    "WITH RECURSIVE q(queue, n) AS ("  # noqa: S608  because the words are ours
    f"SELECT (SELECT j.queue FROM worker.jobs j WHERE {_READY} ORDER BY j.queue LIMIT 1), 1 UNION ALL "
    f"SELECT (SELECT j.queue FROM worker.jobs j WHERE {_READY} AND j.queue > q.queue ORDER BY j.queue LIMIT 1), q.n + 1 "
    f"FROM q WHERE q.queue IS NOT NULL AND q.n < {_QUEUES}), served AS MATERIALIZED ("
    "SELECT DISTINCT unnest(p.queues) AS queue FROM worker.processes p WHERE p.lease_until > clock_timestamp()), "
    "alone AS MATERIALIZED (SELECT q.queue, count(*) OVER () AS n FROM q WHERE q.queue IS NOT NULL "
    "AND q.queue NOT IN (SELECT s.queue FROM served s)) "
    "SELECT f.queue, count(*) AS n, extract(epoch FROM clock_timestamp() - min(f.run_at))::float8 AS age FROM ("
    "SELECT r.queue, r.run_at FROM alone a CROSS JOIN LATERAL (SELECT j.queue, j.run_at FROM worker.jobs j "
    f"WHERE j.queue = a.queue AND {_READY} LIMIT :most / a.n) AS r UNION ALL "
    "SELECT l.queue, l.run_at FROM (SELECT j.queue, j.run_at FROM worker.jobs j WHERE j.state IN ('queued', 'waiting') "
    "AND NOT j.due AND j.run_at <= now() ORDER BY j.run_at LIMIT :most) AS l "
    "WHERE l.queue NOT IN (SELECT s.queue FROM served s)) AS f GROUP BY f.queue ORDER BY f.queue"
)
_ALIVE: Final = text("SELECT count(*) FROM worker.processes WHERE lease_until > clock_timestamp()")
_SERVED: Final = text(
    "SELECT EXISTS (SELECT FROM worker.processes WHERE lease_until > clock_timestamp() AND :queue = ANY (queues))"
)


@dataclass(frozen=True, slots=True)
class Unserved:
    """A queue with due jobs that no living process serves."""

    queue: str
    jobs: int
    age: float  #: seconds for which the oldest of those that were looked at has been due
    more: bool  #: there may be more of them


@dataclass(frozen=True, slots=True)
class Standing:
    """One look. Ages are seconds, counts at most `MOST` for each state."""

    ready_age: Mapping[str, float]  #: by kind: how long the oldest job has been due
    relay_lag: float  #: how long the oldest due job has not been rung for
    states: Mapping[str, int]
    blocked: Mapping[str, int]  #: by kind
    alive: int  #: worker processes
    unserved: Mapping[str, int]  #: by queue that no living process serves: jobs that are due


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
    alive = int(connection.execute(_ALIVE).scalar_one())
    return Standing(ages, lag, states, blocked, alive, {one.queue: one.jobs for one in unserved(connection)})


def unserved(connection: Connection) -> list[Unserved]:
    """Queues with due jobs that no living process serves."""
    rows = connection.execute(_UNSERVED, {"most": MOST}).all()
    return [Unserved(row.queue, row.n, row.age, more=row.n >= MOST // len(rows)) for row in rows]


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
