"""What is owed: the steps that operators skipped, for as long as no retry took a skip back. A debt outlives its job."""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection, text

#: Beyond that a count says "at least".
MOST: Final = 10_000

_COLUMNS: Final = (
    "d.job_id::text, d.subject, CASE d.direction WHEN 'back' THEN 'undo ' ELSE '' END || d.step AS step, "
    "d.reason, d.requested_by, d.at"
)


def of_job(connection: Connection, job_id: str) -> list[Mapping[str, Any]]:
    """Those of one job, the oldest first."""
    found = text(
        f"SELECT {_COLUMNS} FROM worker.debts d WHERE d.job_id = CAST(:id AS uuid) AND d.settled_at IS NULL ORDER BY d.id"  # noqa: S608  because the words are ours
    )
    return [dict(row) for row in connection.execute(found, {"id": job_id}).mappings()]


def newest(connection: Connection, most: int) -> list[Mapping[str, Any]]:
    """At most so many, the newest first."""
    found = text(f"SELECT {_COLUMNS} FROM worker.debts d WHERE d.settled_at IS NULL ORDER BY d.id DESC LIMIT :most")  # noqa: S608  because the words are ours
    return [dict(row) for row in connection.execute(found, {"most": most}).mappings()]


def count(connection: Connection) -> int:
    """How many there are, at most `MOST`."""
    found = text("SELECT count(*) FROM (SELECT FROM worker.debts d WHERE d.settled_at IS NULL LIMIT :most) AS owed")
    return int(connection.execute(found, {"most": MOST}).scalar_one())
