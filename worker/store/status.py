"""What people ask about jobs: read from the stable view, never written."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

from worker.domain import JOB_STATES

#: The keys of `jobs show --json`, in the order in which they are printed.
_SHOWN: Final = (
    *("id", "kind", "subject", "state", "step", "direction", "attempt", "requested_by", "priority", "run_at", "progress"),
    *("created_at", "started_at", "finished_at", "error", "steps"),
)
_LISTED: Final = (
    *("id", "kind", "subject", "state", "step", "direction", "attempt", "requested_by", "created_at", "finished_at"),
    *("waiting_for", "error", "run_at", "parked", "paused", "queue"),
)
_NEED_A_PERSON: Final = frozenset({"failed", "blocked"})
#: The newest of each kind and state that rests, waits or is queued, one probe of jobs_newest each, and all that run, which are
#: few: however many jobs there are, no more are looked at.
_NEWEST: Final = (
    "SELECT f.id::text FROM (SELECT n.id, n.seq "
    "FROM (SELECT k.kind FROM worker.kinds k UNION SELECT d.kind FROM worker.definitions d) AS k "
    "CROSS JOIN unnest(CAST(:states AS text[])) AS s(state) CROSS JOIN LATERAL (SELECT j.id, j.seq FROM worker.jobs j "
    "WHERE j.kind = k.kind AND j.state = s.state AND j.state <> 'running' ORDER BY j.seq DESC LIMIT :most) AS n "
    "WHERE CAST(:kind AS text) IS NULL OR k.kind = :kind "
    "UNION ALL SELECT j.id, j.seq FROM worker.jobs j WHERE j.state = 'running' AND 'running' = ANY (CAST(:states AS text[])) "
    "AND (CAST(:kind AS text) IS NULL OR j.kind = :kind)) AS f ORDER BY f.seq DESC LIMIT :most"
)
_NEWEST_OF_SUBJECT: Final = (
    "SELECT j.id::text FROM worker.jobs j WHERE j.subject = :subject AND j.state = ANY (:states) "
    "AND (CAST(:kind AS text) IS NULL OR j.kind = :kind) ORDER BY j.seq DESC LIMIT :most"
)
_SERVED: Final = "SELECT DISTINCT unnest(p.queues) FROM worker.processes p WHERE p.lease_until > clock_timestamp()"
REST: Final = frozenset({"succeeded", "failed", "cancelled"})


def job(connection: Connection, job_id: str) -> Mapping[str, Any] | None:
    """One job with its steps, as `jobs show --json` prints it, plus `waiting_for` and `queue`. None when there is none."""
    found = (
        connection.execute(text("SELECT * FROM worker.job_status WHERE id = CAST(:id AS uuid)"), {"id": job_id})
        .mappings()
        .one_or_none()
    )
    if found is None:
        return None
    return {**{name: found[name] for name in _SHOWN}, "waiting_for": found["waiting_for"], "queue": found["queue"]}


def jobs(
    connection: Connection, *, state: str | None, failed: bool, kind: str | None, subject: str | None, most: int
) -> list[Mapping[str, Any]]:
    """The newest jobs first, at most `most` of them, each with whether a living process serves its queue."""
    states = [one for one in JOB_STATES if state in {None, one} and (not failed or one in _NEED_A_PERSON)]
    chosen = text(_NEWEST if subject is None else _NEWEST_OF_SUBJECT)
    wanted = {"states": states, "kind": kind, "subject": subject, "most": most}
    ids = list(connection.execute(chosen, wanted).scalars())
    # Chosen first, because the view counts and foretells for each job that it is asked for.
    rows = connection.execute(text("SELECT * FROM worker.job_status WHERE id = ANY (CAST(:ids AS uuid[]))"), {"ids": ids})
    served = set(connection.execute(text(_SERVED)).scalars())
    found = {str(row["id"]): {**{name: row[name] for name in _LISTED}, "served": row["queue"] in served} for row in rows.mappings()}
    return [found[ident] for ident in ids if ident in found]


def ahead(connection: Connection, job_id: str) -> list[str]:
    """The steps of a job from the one at which it stands, in the order in which it comes to them."""
    found = text(
        "SELECT n.name FROM worker.jobs j CROSS JOIN LATERAL unnest(j.steps) WITH ORDINALITY AS n(name, number) "
        "WHERE j.id = CAST(:id AS uuid) AND CASE j.direction WHEN 'forward' THEN n.number > worker.stands_at(j) "
        "ELSE n.number <= worker.stands_at(j) + 1 END "
        "ORDER BY CASE j.direction WHEN 'forward' THEN n.number ELSE -n.number END"
    )
    return list(connection.execute(found, {"id": job_id}).scalars())


def to_retry(connection: Connection, *, kind: str | None, since: timedelta | None) -> list[Mapping[str, Any]]:
    """Jobs that need a person (failed or blocked), the oldest first: id, kind, subject, state, why, at."""
    return [
        dict(row)
        for row in connection.execute(
            text(
                "SELECT * FROM (SELECT j.id::text, j.kind, j.subject, j.state, j.error ->> 'message' AS why, j.seq, "
                "coalesce(j.finished_at, (SELECT max(coalesce(s.finished_at, s.started_at)) FROM worker.steps s "
                "WHERE s.job_id = j.id), j.started_at, j.created_at) AS at FROM worker.jobs j "
                "WHERE j.state IN ('failed', 'blocked') AND (CAST(:kind AS text) IS NULL OR j.kind = :kind)) AS f "
                "WHERE CAST(:since AS interval) IS NULL OR f.at > clock_timestamp() - CAST(:since AS interval) ORDER BY f.seq"
            ),
            {"kind": kind, "since": since},
        ).mappings()
    ]


def concerned(connection: Connection, scope: str, what: str) -> int:
    """How many live jobs a pause of this scope concerns; of a host, how many run there."""
    conditions = {
        "all": "j.state IN ('queued', 'running', 'waiting')",
        "kind": "j.state IN ('queued', 'running', 'waiting') AND j.kind = :what",
        "org": "j.state IN ('queued', 'running', 'waiting') AND j.org = :what",
        "host": "j.state = 'running' AND j.process_id IN (SELECT p.id FROM worker.processes p WHERE p.host = :what)",
    }
    counted = text(f"SELECT count(*) FROM worker.jobs j WHERE {conditions[scope]}")  # noqa: S608  because the words are ours
    return int(connection.execute(counted, {"what": what} if scope != "all" else {}).scalar_one())


def nodes(connection: Connection) -> list[str]:
    """The computers on which processes live, or of late have: rows of the dead are forgotten after an hour."""
    return list(connection.execute(text("SELECT DISTINCT host FROM worker.processes ORDER BY host")).scalars())


def nodes_serving(connection: Connection, host: str) -> list[str] | None:
    """The nodes whose living processes serve this host of workspaces, `NAME` or `BACKEND.NAME`. None where it is none."""
    found = connection.execute(
        text(
            "SELECT DISTINCT p.host FROM worker.processes p, unnest(p.queues) AS q(queue) WHERE p.lease_until > clock_timestamp() "
            "AND (q.queue = :host OR right(q.queue, length(:host) + 1) = '.' || :host) ORDER BY p.host"
        ),
        {"host": host},
    )
    serving = list(found.scalars())
    placed = text("SELECT EXISTS (SELECT FROM worker.placements p WHERE :host IN (p.host, p.backend || '.' || p.host))")
    return serving if serving or connection.execute(placed, {"host": host}).scalar_one() else None


def is_drained(connection: Connection, node: str) -> bool:
    """Whether it is to be left free."""
    found = text("SELECT EXISTS (SELECT FROM worker.pauses p WHERE p.scope = 'host' AND p.what = :node)")
    return bool(connection.execute(found, {"node": node}).scalar_one())


def kinds(connection: Connection) -> list[str]:
    """Every kind that a job may have."""
    return list(connection.execute(text("SELECT kind FROM worker.kinds UNION SELECT kind FROM worker.definitions")).scalars())


def begun(connection: Connection, what: str, low: str, high: str) -> list[str]:
    """Ids of jobs or workspaces from `low` to `high`, at most two."""
    table = {"job": "worker.jobs", "workspace": "public.workspaces"}[what]
    found = text(f"SELECT id::text FROM {table} WHERE id BETWEEN CAST(:low AS uuid) AND CAST(:high AS uuid) ORDER BY id LIMIT 2")  # noqa: S608  because the words are ours
    return list(connection.execute(found, {"low": low, "high": high}).scalars())


def has_subject(connection: Connection, subject: str) -> bool:
    """Whether a job about it is kept."""
    found = text("SELECT EXISTS (SELECT FROM worker.jobs j WHERE j.subject = :subject)")
    return bool(connection.execute(found, {"subject": subject}).scalar_one())


def has_org(connection: Connection, org: str) -> bool:
    """Whether anything belongs to this organisation."""
    found = text(
        "SELECT EXISTS (SELECT FROM worker.placements p WHERE p.org = :org) "
        "OR EXISTS (SELECT FROM worker.jobs j WHERE j.org = :org)"
    )
    return bool(connection.execute(found, {"org": org}).scalar_one())
