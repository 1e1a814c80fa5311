"""What people ask about jobs: read from the stable view, never written."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, text

#: The keys of `jobs show --json`, in the order in which they are printed.
_SHOWN: Final = (
    *("id", "kind", "subject", "state", "step", "direction", "attempt", "requested_by", "priority", "run_at", "progress"),
    *("created_at", "started_at", "finished_at", "error", "steps"),
)
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
    """The newest jobs first, at most `most` of them."""
    return [
        dict(row)
        for row in connection.execute(
            text(
                "SELECT id, kind, subject, state, step, direction, attempt, requested_by, created_at, finished_at, "
                # Chosen first, because the view counts and foretells for each job that it is asked for.
                "waiting_for, error FROM worker.job_status WHERE id = ANY (ARRAY("
                "SELECT j.id FROM worker.jobs j WHERE (CAST(:state AS text) IS NULL OR j.state = :state) "
                "AND (NOT :failed OR j.state IN ('failed', 'blocked')) AND (CAST(:kind AS text) IS NULL OR j.kind = :kind) "
                "AND (CAST(:subject AS text) IS NULL OR j.subject = :subject) ORDER BY j.created_at DESC LIMIT :most)) "
                "ORDER BY created_at DESC"
            ),
            {"state": state, "failed": failed, "kind": kind, "subject": subject, "most": most},
        ).mappings()
    ]


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


def hosts(connection: Connection) -> list[str]:
    """Where processes live now."""
    found = "SELECT DISTINCT host FROM worker.processes WHERE lease_until > clock_timestamp() ORDER BY host"
    return list(connection.execute(text(found)).scalars())
