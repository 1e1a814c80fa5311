"""The rows of `public.workspaces`: each change carries its guard, so that nobody overwrites what somebody else decided.

Every function takes part in the caller's transaction and writes its event in it. An update that its guard refuses is not an
error: somebody else moved the workspace, nothing is written, no event is recorded, and the answer is False.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from worker.domain import Placement, Workspace, WorkspaceId, WorkspaceStatus, tier_of_row
from worker.errors import Refused
from worker.new_workspace import NewWorkspace, refuse_unfit
from worker.store import events, tables, tokens

_W: Final = tables.workspaces
_NOT_REMOVED: Final = tables.status_text != WorkspaceStatus.REMOVED
#: What people read of a failure; a whole log does not belong into a row.
_ERROR_LIMIT: Final = 2000
#: Values that other releases of the platform write and this enum does not know.
_STRANGE: Final = {"hibernating": WorkspaceStatus.HIBERNATED}


def get(connection: Connection, workspace_id: str, *, lock: bool = False) -> Workspace | None:
    """The row, None where there is none. With `lock` nobody else changes it until the transaction ends."""
    query = _rows().where(_W.c.id == workspace_id)
    row = connection.execute(query.with_for_update(key_share=True) if lock else query).one_or_none()
    return None if row is None else _workspace(row)


def list_all(connection: Connection, *, with_removed: bool = False) -> Sequence[Workspace]:
    """Every workspace, oldest first; tombstones only where asked for."""
    query = _rows().order_by(_W.c.created_at, _W.c.id)
    return [_workspace(row) for row in connection.execute(query if with_removed else query.where(_NOT_REMOVED))]


def children(connection: Connection, workspace_id: str) -> Sequence[Workspace]:
    """The workspaces directly below it that are not removed, oldest first."""
    query = _rows().where(_W.c.parent_id == workspace_id, _NOT_REMOVED).order_by(_W.c.created_at, _W.c.id)
    return [_workspace(row) for row in connection.execute(query)]


def is_removed(connection: Connection, workspace_id: str) -> bool:
    """True for a tombstone and for a row that does not exist (any more)."""
    status = connection.execute(select(tables.status_text).where(_W.c.id == workspace_id)).scalar_one_or_none()
    return status in {None, WorkspaceStatus.REMOVED}


def placement(connection: Connection, workspace_id: str) -> Placement | None:
    """Where it lives; None for a workspace that was not created through this worker."""
    p = tables.placements.c
    row = connection.execute(select(p.org, p.backend, p.host).where(p.workspace_id == workspace_id)).one_or_none()
    return None if row is None else Placement(row.org, row.backend, row.host)


def model(connection: Connection, workspace_id: str) -> str | None:
    """The model that was asked for at creation, None for the runtime's default."""
    p = tables.placements.c
    return connection.execute(select(p.model).where(p.workspace_id == workspace_id)).scalar_one_or_none()


def create(connection: Connection, wanted: NewWorkspace, place: Placement, runtimes: Collection[str]) -> WorkspaceId:
    """A row in `provisioning` and its placement. Raises Refused before anything is stored. The caller enqueues its job."""
    refuse_unfit(wanted, runtimes)
    if wanted.parent_id is not None:
        _hold_parent(connection, wanted.parent_id)
    new = insert(_W).values(
        name=wanted.name,
        role=wanted.role or None,
        tier=wanted.tier,
        runtime=wanted.runtime,
        status=WorkspaceStatus.PROVISIONING,
        parent_id=wanted.parent_id,
        workspace_dir=wanted.workspace_dir or None,
        workspace_access=wanted.workspace_access,
    )
    workspace_id = WorkspaceId(connection.execute(new.returning(_W.c.id)).scalar_one())
    connection.execute(update(_W).where(_W.c.id == workspace_id).values(awareness_namespace=f"workspace:{workspace_id}"))
    where = {"org": place.org, "backend": place.backend, "host": place.host, "model": wanted.model or None}
    connection.execute(insert(tables.placements).values(workspace_id=workspace_id, **where))
    return workspace_id


def mark_provisioning(connection: Connection, workspace_id: str) -> bool:
    """A container is on its way. The old address and the old failure are forgotten, because both are another container's."""
    values = {"status": WorkspaceStatus.PROVISIONING, "url": None, "last_sample_error": None}
    if not _change(connection, workspace_id, _NOT_REMOVED, **values):
        return False
    row = connection.execute(select(_W.c.name, _W.c.tier, _W.c.runtime).where(_W.c.id == workspace_id)).one()
    payload = {"name": row.name, "tier": tier_of_row(row.tier), "runtime": row.runtime}
    events.record(connection, "WORKSPACE_PROVISIONING", workspace_id, payload)
    return True


def mark_failed(
    connection: Connection, workspace_id: str, error_text: str, missing: Sequence[str] = (), *, registered: bool = False
) -> bool:
    """Provisioning was given up. `error_text` is shown to people; `missing` names environment variables.

    With `registered` also where an agent is said to be up: it was this provision's own, and is gone.
    """
    shown = error_text[:_ERROR_LIMIT]
    given_up = (WorkspaceStatus.PROVISIONING, *((WorkspaceStatus.ONLINE, WorkspaceStatus.DEGRADED) if registered else ()))
    still = tables.status_text.in_(given_up)
    if not _change(connection, workspace_id, still, status=WorkspaceStatus.FAILED, last_sample_error=shown):
        return False
    payload: dict[str, Any] = {"error": shown, **({"missing": list(missing)} if missing else {})}
    events.record(connection, "WORKSPACE_PROVISION_FAILED", workspace_id, payload)
    return True


def save_url(connection: Connection, workspace_id: str, url: str) -> bool:
    """Where the host reaches it. Written before the agent registers, which then leaves it alone."""
    return _change(connection, workspace_id, _NOT_REMOVED, url=url)


def tombstone(connection: Connection, workspace_id: str, cascade_deleted: int | None = None) -> bool:
    """Removed, for ever: the status first, then whatever could bring it back. Once: a second call answers False.

    `cascade_deleted` is how many went with it: given for the root of a deletion, absent for what lies below.
    """
    if not _change(connection, workspace_id, _NOT_REMOVED, status=WorkspaceStatus.REMOVED):
        return False
    connection.execute(delete(tables.canvas_layouts).where(tables.canvas_layouts.c.workspace_id == workspace_id))
    tokens.revoke_all(connection, workspace_id)
    schedules = tables.workspace_schedules
    off = update(schedules).where(schedules.c.workspace_id == workspace_id, schedules.c.enabled)
    connection.execute(off.values(enabled=False, updated_at=func.now()))
    payload = {} if cascade_deleted is None else {"cascade_deleted": cascade_deleted}
    events.record(connection, "WORKSPACE_REMOVED", workspace_id, payload)
    return True


def _change(connection: Connection, workspace_id: str, guard: ColumnElement[bool], **values: object) -> bool:
    guarded = update(_W).where(_W.c.id == workspace_id, guard)
    return connection.execute(guarded.values(**values, updated_at=func.now())).rowcount == 1


def _hold_parent(connection: Connection, parent_id: str) -> None:
    """The parent's row is share-locked, because a deletion must not pass between this look and our commit."""
    row = select(tables.status_text).where(_W.c.id == parent_id).with_for_update(read=True)
    if connection.execute(row).scalar_one_or_none() in {None, WorkspaceStatus.REMOVED}:
        raise Refused("create workspace: parent does not exist or is removed", hint="molecule-worker workspaces list")


def _rows() -> Any:
    columns = (_W.c.id, _W.c.name, _W.c.role, _W.c.tier, _W.c.runtime, _W.c.parent_id, _W.c.workspace_dir)
    return select(*columns, _W.c.workspace_access, _W.c.url, tables.status_text.label("status"))


def _status(stored: str) -> WorkspaceStatus:
    """A value that only another release knows is taken for offline: it is neither gone nor known to answer."""
    known = WorkspaceStatus.__members__.get(stored.upper())
    return known or _STRANGE.get(stored, WorkspaceStatus.OFFLINE)


def _workspace(row: Row[Any]) -> Workspace:
    return Workspace(
        id=WorkspaceId(row.id),
        name=row.name,
        role=row.role,
        tier=tier_of_row(row.tier),
        status=_status(row.status),
        runtime=row.runtime or "langgraph",
        parent_id=None if row.parent_id is None else WorkspaceId(row.parent_id),
        workspace_dir=row.workspace_dir,
        workspace_access=row.workspace_access,
        url=row.url,
    )
