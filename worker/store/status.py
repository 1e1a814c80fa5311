"""What people ask about jobs: read from the stable view, never written."""

from collections.abc import Mapping
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
                "waiting_for, error FROM worker.job_status WHERE (CAST(:state AS text) IS NULL OR state = :state) "
                "AND (NOT :failed OR state IN ('failed', 'blocked')) AND (CAST(:kind AS text) IS NULL OR kind = :kind) "
                "AND (CAST(:subject AS text) IS NULL OR subject = :subject) ORDER BY created_at DESC LIMIT :most"
            ),
            {"state": state, "failed": failed, "kind": kind, "subject": subject, "most": most},
        ).mappings()
    ]


def why_waiting(connection: Connection, job_id: str) -> str | None:
    """Why a job is not run: its time, whoever holds its subject, nobody who serves its queue. None when it simply will be."""
    row = connection.execute(
        text(
            "SELECT j.state, j.queue, j.run_at, j.run_at > clock_timestamp() AS early, "
            "h.id::text AS holder, h.kind AS holder_kind, "
            "EXISTS (SELECT FROM worker.processes p WHERE p.lease_until > clock_timestamp() AND j.queue = ANY (p.queues)) "
            "AS served FROM worker.jobs j LEFT JOIN worker.subjects s ON s.key = j.subject AND s.job_id <> j.id "
            "LEFT JOIN worker.jobs h ON h.id = s.job_id WHERE j.id = CAST(:id AS uuid)"
        ),
        {"id": job_id},
    ).one_or_none()
    if row is None or row.state not in {"queued", "waiting"}:
        return None
    if row.state == "queued" and row.holder is not None:
        return f"{row.holder_kind} {row.holder} on the same subject to end"
    if row.early:
        # What a waiting job waits for is its own; its time is that of a look around every few seconds.
        return f"its time, {row.run_at.astimezone():%Y-%m-%d %H:%M:%S}" if row.state == "queued" else None
    return None if row.served else f"a worker that serves the queue {row.queue}"
