"""What people and programs ask of the engine: enqueue, cancel, retry, and the SQLSTATEs that refuse them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from worker import trace_context
from worker.errors import Refused

#: SQLSTATE → stable code. 22023 and the class MW come from the functions of migrations/sql/functions.
_REFUSALS = {
    "22023": "bad_args",
    "MW001": "live_job",
    "MW002": "idempotency_key_reused",
    "MW003": "only_forward",
    "MW004": "nothing_to_retry",
    "MW005": "not_skippable",
}


@contextmanager
def refusals() -> Iterator[None]:
    """Turn the database's own refusals into `Refused` with its sentence and hint; everything else passes through."""
    try:
        yield
    except DBAPIError as error:
        code = _REFUSALS.get(getattr(error.orig, "pgcode", None) or "")
        if code is None:
            raise
        said = getattr(error.orig, "diag", None)
        raise Refused(
            getattr(said, "message_primary", None) or code, hint=getattr(said, "message_hint", None) or "", code=code
        ) from error


def enqueue(
    connection: Connection,
    kind: str,
    args: Mapping[str, Any],
    *,
    idempotency_key: str | None = None,
    run_at: datetime | None = None,
    priority: int = 100,
    requested_by: str | None = None,
    traceparent: str | None = None,
) -> tuple[str, bool]:
    """`worker.enqueue` in the caller's transaction. Answers (job id, whether it is new). Raises Refused.

    Without a `traceparent` the trace of the caller is continued, when there is one.
    """
    with refusals():
        row = connection.execute(
            text(
                "SELECT job_id::text, created FROM worker.enqueue(:kind, CAST(:args AS jsonb), :key, :at, :priority, :by, :trace)"
            ),
            {
                "kind": kind,
                "args": json.dumps(dict(args)),
                "key": idempotency_key,
                "at": run_at,
                "priority": priority,
                "by": requested_by,
                "trace": traceparent or trace_context.current(),
            },
        ).one()
    return row[0], row[1]


def cancel(connection: Connection, job_id: str, reason: str, *, requested_by: str) -> bool:
    """Ask a job to undo and end. False when it has ended already. Raises Refused for one that only goes forward."""
    with refusals():
        return bool(
            connection.execute(
                text("SELECT worker.cancel(CAST(:id AS uuid), :reason, :by)"), {"id": job_id, "reason": reason, "by": requested_by}
            ).scalar_one()
        )


def retry(connection: Connection, job_id: str, *, requested_by: str, from_step: str | None = None) -> None:
    """Run a failed job from its first step, a blocked or waiting one from its own or from an earlier one. Raises Refused."""
    with refusals():
        connection.execute(
            text("SELECT worker.retry(CAST(:id AS uuid), :by, :step)"), {"id": job_id, "by": requested_by, "step": from_step}
        )


def skip(connection: Connection, job_id: str, step: str, reason: str, *, requested_by: str) -> None:
    """Pass the step at which a blocked or waiting job stands, and owe it from now on. Raises Refused."""
    with refusals():
        connection.execute(
            text("SELECT worker.skip(CAST(:id AS uuid), :step, :reason, :by)"),
            {"id": job_id, "step": step, "reason": reason, "by": requested_by},
        )


def pause(connection: Connection, scope: str, what: str, reason: str | None, *, requested_by: str) -> bool:
    """Have nothing of that claimed; of a host, leave it free. False when it was so already. Raises Refused."""
    with refusals():
        return bool(
            connection.execute(
                text("SELECT worker.pause(:scope, :what, :reason, :by)"),
                {"scope": scope, "what": what, "reason": reason, "by": requested_by},
            ).scalar_one()
        )


def resume(connection: Connection, scope: str, what: str, *, requested_by: str) -> int | None:
    """End a pause. How many jobs are free again, None when there was no pause."""
    with refusals():
        freed: int | None = connection.execute(
            text("SELECT worker.resume(:scope, :what, :by)"), {"scope": scope, "what": what, "by": requested_by}
        ).scalar_one()
    return freed
