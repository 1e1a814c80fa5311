"""Rows that many tests begin with, and one look at what became of them."""

from typing import Any

from sqlalchemy import Row, select, text
from sqlalchemy import update as change

from tests.conftest import Database
from worker.domain import Placement, Secret, WorkspaceId, WorkspaceStatus
from worker.new_workspace import NewWorkspace
from worker.store import tables, tokens, workspaces

HERE = Placement(org="acme", backend="docker", host="local")


def add_workspace(database: Database, status: WorkspaceStatus = WorkspaceStatus.PROVISIONING, **fields: Any) -> WorkspaceId:
    wanted = {"name": "Ada", "runtime": "langgraph", "tier": 2, **fields}
    with database.engine.begin() as connection:
        workspace_id = workspaces.create(connection, NewWorkspace(**wanted), HERE, ["langgraph"])
    set_columns(database, workspace_id, status=status)
    return workspace_id


def add_token(database: Database, workspace_id: str) -> Secret:
    token = tokens.mint()
    with database.engine.begin() as connection:
        assert tokens.replace(connection, workspace_id, token)
    return token


def set_columns(database: Database, workspace_id: str, **values: Any) -> None:
    with database.engine.begin() as connection:
        connection.execute(change(tables.workspaces).where(tables.workspaces.c.id == workspace_id).values(**values))


def row_of(database: Database, workspace_id: str) -> Row[Any]:
    with database.engine.connect() as connection:
        return connection.execute(select(tables.workspaces).where(tables.workspaces.c.id == workspace_id)).one()


def events_of(database: Database, workspace_id: str) -> list[tuple[str, Any]]:
    found = text("SELECT event_type, payload FROM structure_events WHERE workspace_id = :id ORDER BY created_at, id")
    with database.engine.connect() as connection:
        return [(row.event_type, row.payload) for row in connection.execute(found, {"id": workspace_id})]


def add_waiting_job(database: Database, workspace_id: str) -> None:
    """A job on the workspace that waits for an hour, unless somebody wakes it."""
    statements = (
        """INSERT INTO worker.kinds (kind, subject_prefix, subject_arg, args, steps, only_forward)
           VALUES ('workspace.provision', 'workspace:', 'workspace_id', '{"workspace_id": {"type": "uuid", "required": true}}',
                   '{wait}', false)""",
        "SELECT worker.enqueue('workspace.provision', jsonb_build_object('workspace_id', CAST(:id AS text)))",
        "UPDATE worker.jobs SET state = 'waiting', run_at = now() + interval '1 hour'",
    )
    with database.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement), {"id": workspace_id} if ":id" in statement else {})


def was_woken(database: Database) -> bool:
    with database.engine.connect() as connection:
        return bool(connection.execute(text("SELECT woken AND run_at <= now() FROM worker.jobs")).scalar_one())
