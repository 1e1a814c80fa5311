from typing import Any

import pytest
from sqlalchemy import func, insert, select, text

from tests.conftest import Database
from tests.rows import HERE, add_token, add_workspace, events_of, row_of, set_columns
from worker.domain import WorkspaceStatus as Status
from worker.errors import Refused
from worker.new_workspace import NewWorkspace
from worker.store import tables, tokens, workspaces


def create(database: Database, **fields: Any) -> str:
    wanted = NewWorkspace(**{"name": "Ada", "runtime": "langgraph", "tier": 2, **fields})
    with database.engine.begin() as connection:
        return workspaces.create(connection, wanted, HERE, ["langgraph"])


def test_a_new_workspace_has_a_row_a_namespace_a_model_and_a_placement(database: Database) -> None:
    parent = create(database)
    child = create(
        database,
        name="Bob",
        role="clerk",
        tier=3,
        model="m-1",
        parent_id=parent,
        workspace_dir="/home/b",
        workspace_access="read_only",
    )

    row = row_of(database, child)
    assert (row.name, row.role, row.tier, row.runtime, row.status) == ("Bob", "clerk", 3, "langgraph", "provisioning")
    assert (row.parent_id, row.workspace_dir, row.workspace_access) == (parent, "/home/b", "read_only")
    assert row.awareness_namespace == f"workspace:{child}"
    with database.engine.connect() as connection:
        assert workspaces.placement(connection, child) == HERE
        assert workspaces.model(connection, child) == "m-1"
        assert workspaces.model(connection, parent) is None
        assert [w.id for w in workspaces.children(connection, parent)] == [child]
        found = workspaces.get(connection, child)
    assert found is not None
    assert (found.name, found.tier, found.status, found.parent_id) == ("Bob", 3, Status.PROVISIONING, parent)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"runtime": "external"},
        {"tier": 0},
        {"parent_id": "0f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3"},
        {"workspace_access": "rw"},
    ],
)
def test_a_refused_workspace_leaves_nothing(database: Database, fields: dict[str, Any]) -> None:
    wanted = NewWorkspace(**{"name": "Ada", "runtime": "langgraph", "tier": 2, **fields})
    with database.engine.begin() as connection, pytest.raises(Refused):  # and commits, so that a row written before would stay
        workspaces.create(connection, wanted, HERE, ["langgraph"])
    with database.engine.connect() as connection:
        for table in (tables.workspaces, tables.placements):
            assert connection.execute(select(func.count()).select_from(table)).scalar_one() == 0


def test_a_removed_parent_takes_no_children(database: Database) -> None:
    parent = add_workspace(database, Status.REMOVED)
    with pytest.raises(Refused, match="parent"):
        create(database, parent_id=parent)


def test_a_deletion_waits_for_the_child_that_is_being_made(database: Database) -> None:
    parent = add_workspace(database)
    with database.engine.begin() as first, database.engine.begin() as second:
        workspaces.create(first, NewWorkspace("Bob", "langgraph", 2, parent_id=parent), HERE, ["langgraph"])
        second.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with pytest.raises(Exception, match="lock timeout"), second.begin_nested():
            workspaces.tombstone(second, parent)


def test_rows_from_before_the_checks_are_read_as_what_they_mean(database: Database) -> None:
    workspace = add_workspace(database)
    set_columns(database, workspace, tier=0, status=None, runtime=None)
    with database.engine.connect() as connection:
        found = workspaces.get(connection, workspace)
    assert found is not None
    assert (found.tier, found.status, found.runtime) == (2, Status.PROVISIONING, "langgraph")


@pytest.mark.parametrize(("stored", "read"), [("hibernating", Status.HIBERNATED), ("awaiting_agent", Status.OFFLINE)])
def test_a_status_of_another_release_breaks_no_listing(database: Database, stored: str, read: Status) -> None:
    workspace = add_workspace(database)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"ALTER TYPE workspace_status ADD VALUE '{stored}'"))
        connection.execute(text("UPDATE workspaces SET status = CAST(:s AS workspace_status)"), {"s": stored})
        assert [w.status for w in workspaces.list_all(connection)] == [read]
        assert workspaces.mark_provisioning(connection, workspace)


def test_tombstones_are_listed_only_where_asked_for(database: Database) -> None:
    old, new = add_workspace(database, Status.REMOVED), add_workspace(database)
    with database.engine.connect() as connection:
        assert [w.id for w in workspaces.list_all(connection)] == [new]
        assert [w.id for w in workspaces.list_all(connection, with_removed=True)] == [old, new]
        assert workspaces.is_removed(connection, old)
        assert not workspaces.is_removed(connection, new)
        assert workspaces.is_removed(connection, "0f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3")
        assert workspaces.get(connection, "0f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3") is None


def test_a_removed_child_is_no_child(database: Database) -> None:
    parent = add_workspace(database)
    child = add_workspace(database, parent_id=parent)
    set_columns(database, child, status=Status.REMOVED)
    with database.engine.connect() as connection:
        assert workspaces.children(connection, parent) == []


def test_a_locked_row_is_not_changed_by_anybody_else(database: Database) -> None:
    workspace = add_workspace(database)
    with database.engine.begin() as first, database.engine.begin() as second:
        assert workspaces.get(first, workspace, lock=True)
        assert workspaces.get(second, workspace)
        second.execute(text("SET LOCAL lock_timeout = '50ms'"))
        with pytest.raises(Exception, match="lock timeout"), second.begin_nested():
            workspaces.save_url(second, workspace, "http://127.0.0.1:1")


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.REMOVED])
def test_provisioning_begins_again_from_every_status_but_removed(database: Database, status: Status) -> None:
    workspace = add_workspace(database, status)
    set_columns(database, workspace, url="http://127.0.0.1:1", last_sample_error="old")
    with database.engine.begin() as connection:
        assert workspaces.mark_provisioning(connection, workspace)
    row = row_of(database, workspace)
    assert (row.status, row.url, row.last_sample_error) == ("provisioning", None, None)
    assert events_of(database, workspace) == [("WORKSPACE_PROVISIONING", {"name": "Ada", "tier": 2, "runtime": "langgraph"})]


def test_only_what_is_being_provisioned_can_fail(database: Database) -> None:
    for status in Status:
        workspace = add_workspace(database, status)
        with database.engine.begin() as connection:
            assert workspaces.mark_failed(connection, workspace, "workspace start failed") is (status is Status.PROVISIONING)
        assert row_of(database, workspace).status == ("failed" if status is Status.PROVISIONING else status)
        assert len(events_of(database, workspace)) == (status is Status.PROVISIONING)


def test_a_failure_is_told_with_what_is_missing(database: Database) -> None:
    workspace = add_workspace(database)
    with database.engine.begin() as connection:
        workspaces.mark_failed(connection, workspace, "missing required env", ["API_KEY"])
    assert row_of(database, workspace).last_sample_error == "missing required env"
    assert events_of(database, workspace) == [
        ("WORKSPACE_PROVISION_FAILED", {"error": "missing required env", "missing": ["API_KEY"]})
    ]


def test_nothing_but_an_event_is_written_to_a_tombstone(database: Database) -> None:
    workspace = add_workspace(database, Status.REMOVED)
    before = row_of(database, workspace)
    with database.engine.begin() as connection:
        assert not workspaces.mark_provisioning(connection, workspace)
        assert not workspaces.mark_failed(connection, workspace, "x")
        assert not workspaces.save_url(connection, workspace, "http://127.0.0.1:1")
        assert not workspaces.tombstone(connection, workspace)
        assert not tokens.replace(connection, workspace, tokens.mint())
    assert row_of(database, workspace) == before
    assert events_of(database, workspace) == []


def test_a_tombstone_takes_along_whatever_could_bring_the_workspace_back_and_is_set_once(database: Database) -> None:
    workspace, other = add_workspace(database, Status.ONLINE), add_workspace(database, Status.ONLINE)
    token, others = add_token(database, workspace), add_token(database, other)
    with database.engine.begin() as connection:
        for each in (workspace, other):
            connection.execute(insert(tables.canvas_layouts).values(workspace_id=each))
            connection.execute(insert(tables.workspace_schedules).values(workspace_id=each, name="daily"))
    with database.engine.begin() as connection:
        assert workspaces.tombstone(connection, workspace, cascade_deleted=2)
        assert not workspaces.tombstone(connection, workspace, cascade_deleted=2)

    assert row_of(database, workspace).status == "removed"
    assert row_of(database, other).status == "online"
    assert events_of(database, workspace) == [("WORKSPACE_REMOVED", {"cascade_deleted": 2})]
    with database.engine.begin() as connection:
        assert connection.execute(select(tables.canvas_layouts.c.workspace_id)).scalars().all() == [other]
        on = select(tables.workspace_schedules.c.workspace_id).where(tables.workspace_schedules.c.enabled)
        assert connection.execute(on).scalars().all() == [other]
        assert tokens.owner_of(connection, token) is None
        assert tokens.owner_of(connection, others) == other


def test_a_descendants_tombstone_counts_nothing(database: Database) -> None:
    workspace = add_workspace(database)
    with database.engine.begin() as connection:
        workspaces.tombstone(connection, workspace)
    assert events_of(database, workspace) == [("WORKSPACE_REMOVED", {})]


def test_the_url_is_saved(database: Database) -> None:
    workspace = add_workspace(database)
    with database.engine.begin() as connection:
        assert workspaces.save_url(connection, workspace, "http://127.0.0.1:32768")
    assert row_of(database, workspace).url == "http://127.0.0.1:32768"


def test_an_event_that_was_rolled_back_never_happened(database: Database) -> None:
    workspace = add_workspace(database)
    with database.engine.connect() as connection:
        workspaces.tombstone(connection, workspace)
        connection.rollback()
    assert events_of(database, workspace) == []
    assert row_of(database, workspace).status == "provisioning"
