"""What stands in a job's way, and what operators have paused: read, never written."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from worker.engine.explain import Crew, Other, Pause, Standing

_TIMES = ("run_at", "finished_at", "since")
_OTHERS = ("superseded_by", "holder", "first")


def standing(connection: Connection, job_id: str) -> Standing | None:
    """Everything that decides whether this job runs now; None when there is no such job."""
    found: Mapping[str, Any] | None = connection.execute(
        text("SELECT worker.standing(CAST(:id AS uuid))"), {"id": job_id}
    ).scalar_one()
    if found is None:
        return None
    process, children = found["process"], found["children"]
    plain = {name: value for name, value in found.items() if name != "processes"}
    return Standing(
        **{
            **plain,
            **{name: _time(found[name]) for name in _TIMES},
            **{name: Other(**found[name]) if found[name] else None for name in _OTHERS},
            "crew": Crew(**found["processes"]),
            "pauses": [Pause(**{**pause, "at": datetime.fromisoformat(pause["at"])}) for pause in found["pauses"]],
            "process": (process["name"], process["host"], process["alive"]) if process else None,
            "children": (children["live"], children["unstarted"]),
        }
    )


def pauses(connection: Connection) -> list[Pause]:
    """All that hold, the oldest first."""
    return [
        Pause(**row)
        for row in connection.execute(
            text("SELECT scope, what, reason, requested_by, at FROM worker.pauses ORDER BY at")
        ).mappings()
    ]


def _time(given: str | None) -> datetime | None:
    return datetime.fromisoformat(given) if given else None
