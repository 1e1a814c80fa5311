"""What a register call or a heartbeat changes: the row, the event and the waiting job, in the caller's one transaction.

A workspace at rest stays at rest: nothing here brings back one that was removed, and only a person's resume wakes one that was
paused or hibernated.
"""

import re
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, case, func, select, update

from worker.domain import WorkspaceStatus, container_name
from worker.reports import WEDGED, Heartbeat, Registration, next_status
from worker.store import events, tables, workspaces

_W: Final = tables.workspaces
#: As text, because `hibernating` is in some platforms' enum and not in others'.
_AT_REST: Final = ("removed", "paused", "hibernated", "hibernating")
#: The host's own address of a published port: written by the backend, and an agent cannot know better.
_HOST_URL: Final = r"^http://127\.0\.0\.1(:|/|$)"
#: Where an agent listens inside its container.
_PORT: Final = 8000


@dataclass(frozen=True, slots=True)
class Standing:
    """How a workspace stands after its call, and what to broadcast once that is committed."""

    status: WorkspaceStatus
    url: str | None
    internal_url: str | None  #: where other workspaces reach it
    event: events.Event | None = None  #: None: nothing changed that anybody has to hear of

    @property
    def answers(self) -> bool:
        """Whether readers of the cache may call it."""
        return self.status in {WorkspaceStatus.ONLINE, WorkspaceStatus.DEGRADED}


def register(connection: Connection, workspace_id: str, report: Registration) -> Standing | None:
    """Online, with its card, from any status but those at rest; None (nothing written) from those. Wakes the waiting job."""
    before = workspaces.get(connection, workspace_id, lock=True)
    guarded = update(_W).where(_W.c.id == workspace_id, tables.status_text.not_in(_AT_REST))
    row = connection.execute(
        guarded.values(
            status=WorkspaceStatus.ONLINE,
            url=case((_W.c.url.regexp_match(_HOST_URL), _W.c.url), else_=report.url),
            agent_card=dict(report.agent_card),
            last_heartbeat_at=func.now(),
            updated_at=func.now(),
        ).returning(_W.c.url)
    ).one_or_none()
    if before is None or row is None:
        return None
    event = None
    if before.status != WorkspaceStatus.ONLINE:
        payload = {"url": row.url, "agent_card": dict(report.agent_card)}
        event = events.record(connection, "WORKSPACE_ONLINE", workspace_id, payload)
    _wake(connection, workspace_id)
    return Standing(WorkspaceStatus.ONLINE, row.url, internal_url(workspace_id, row.url), event)


def beat(connection: Connection, workspace_id: str, report: Heartbeat) -> Standing | None:
    """Keep what was reported and move the status where it must move; None (nothing written) for a tombstone."""
    before = workspaces.get(connection, workspace_id, lock=True)
    if not _keep(connection, workspace_id, report) or before is None:
        return None
    status, event = next_status(before.status, report), None
    if _move(connection, workspace_id, before.status, status):
        event = events.record(connection, *_event(workspace_id, before.status, status, report))
        _wake(connection, workspace_id)
    return Standing(status, before.url, internal_url(workspace_id, before.url), event)


def internal_url(workspace_id: str, url: str | None) -> str | None:
    """Pure: the container's name on its network behind a published port, else the very address that the host uses."""
    if url and re.match(_HOST_URL, url):
        return f"http://{container_name(workspace_id)}:{_PORT}"
    return url


def _keep(connection: Connection, workspace_id: str, report: Heartbeat) -> bool:
    spend = {} if report.monthly_spend is None else {"monthly_spend": report.monthly_spend}
    guarded = update(_W).where(_W.c.id == workspace_id, tables.status_text != WorkspaceStatus.REMOVED)
    values = guarded.values(
        last_heartbeat_at=func.now(),
        last_error_rate=report.error_rate,
        # In a failed workspace it says why provisioning failed, and people still have to read that.
        last_sample_error=case((tables.status_text == WorkspaceStatus.FAILED, _W.c.last_sample_error), else_=report.sample_error),
        active_tasks=report.active_tasks,
        current_task=report.current_task,
        uptime_seconds=report.uptime_seconds,
        updated_at=func.now(),
        **spend,
    )
    return connection.execute(values).rowcount == 1


def _move(connection: Connection, workspace_id: str, before: WorkspaceStatus, status: WorkspaceStatus) -> bool:
    if status == before:
        return False
    guarded = update(_W).where(_W.c.id == workspace_id, tables.status_text == before)
    return connection.execute(guarded.values(status=status)).rowcount == 1


def _event(
    workspace_id: str, before: WorkspaceStatus, status: WorkspaceStatus, report: Heartbeat
) -> tuple[str, str, dict[str, object]]:
    if status == WorkspaceStatus.ONLINE:
        return "WORKSPACE_ONLINE", workspace_id, {"recovered_from": before.value}
    # Without the sample error, because it is output of the workspace and the log of events is for ever.
    state = {"runtime_state": WEDGED} if report.wedged else {}
    return "WORKSPACE_DEGRADED", workspace_id, {"error_rate": report.error_rate, **state}


def _wake(connection: Connection, workspace_id: str) -> None:
    connection.execute(select(func.worker.wake(f"workspace:{workspace_id}")))
