"""Secrets in a real Postgres: sealed on the way in, opened all or none."""

from base64 import b64encode
from collections.abc import Iterator
from uuid import uuid4

import pytest
from sqlalchemy import Connection, insert, select, text, update
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from tests.conftest import Database
from worker.crypto import envelope
from worker.crypto.keyring import StaticKey
from worker.domain import Secret, WorkspaceId
from worker.errors import CryptoError, Misconfigured, Refused, Tampered, UnknownVersion, WorkerError, WrongKey
from worker.forbidden import LARGEST, Scope
from worker.store import secrets
from worker.store.tables import global_secrets, workspace_secrets, workspaces

KEY = StaticKey(bytes(range(32)))
OTHER = StaticKey(bytes(range(1, 33)))
CANARY = "canary-value-7f3a"


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.engine.connect() as connection:
        yield connection


@pytest.fixture
def workspace(connection: Connection) -> WorkspaceId:
    return add_workspace(connection)


def add_workspace(connection: Connection, status: str | None = "provisioning") -> WorkspaceId:
    name = WorkspaceId(str(uuid4()))
    connection.execute(insert(workspaces).values(id=name, name="a workspace", status=status))
    return name


def add_global(connection: Connection, name: str, blob: bytes, version: int) -> None:
    connection.execute(insert(global_secrets).values(key=name, encrypted_value=blob, encryption_version=version))


def add_own(connection: Connection, workspace: WorkspaceId, name: str, blob: bytes, version: int) -> None:
    row = {"workspace_id": workspace, "key": name, "encrypted_value": blob, "encryption_version": version}
    connection.execute(insert(workspace_secrets).values(row))


def everything_said(error: BaseException | None) -> str:
    said = ""
    while error is not None:
        said += f"{error} {error!r} {error.args!r} {getattr(error, 'hint', '')} {vars(error)}"
        error = error.__cause__ or error.__context__
    return said


def test_a_workspaces_own_secret_wins_over_a_global_one(connection: Connection, workspace: WorkspaceId) -> None:
    secrets.seal_into(connection, KEY, "BOTH", Secret("own"), workspace)
    secrets.seal_into(connection, KEY, "BOTH", Secret("global"))
    secrets.seal_into(connection, KEY, "GLOBAL_ONLY", Secret("shared"))
    secrets.seal_into(connection, KEY, "OWN_ONLY", Secret("mine"), workspace)

    opened = secrets.open_all(connection, KEY, workspace)

    assert opened == {"BOTH": Secret("own"), "GLOBAL_ONLY": Secret("shared"), "OWN_ONLY": Secret("mine")}


def test_a_workspace_never_receives_another_ones_secret(connection: Connection, workspace: WorkspaceId) -> None:
    secrets.seal_into(connection, KEY, "MINE", Secret("x"), add_workspace(connection))

    assert secrets.open_all(connection, KEY, workspace) == {}
    assert secrets.names(connection, workspace) == []


@pytest.mark.parametrize("value", ["", "line\nline", "naïve 鍵", "x" * 70_000])
def test_a_value_comes_back_as_it_was(connection: Connection, workspace: WorkspaceId, value: str) -> None:
    secrets.seal_into(connection, KEY, "A", Secret(value), workspace)

    assert secrets.open_all(connection, KEY, workspace) == {"A": Secret(value)}


def test_what_is_stored_is_version_1_under_the_key_and_not_the_value(connection: Connection, workspace: WorkspaceId) -> None:
    secrets.seal_into(connection, KEY, "A", Secret(CANARY), workspace)
    secrets.seal_into(connection, KEY, "A", Secret(CANARY))

    for table in (workspace_secrets, global_secrets):
        row = connection.execute(select(table)).one()
        assert row.encryption_version == 1
        assert CANARY.encode() not in row.encrypted_value
        assert envelope.open_sealed(row.encrypted_value, 1, KEY) == CANARY.encode()


def test_a_plain_row_from_before_the_key_is_read_and_becomes_sealed_when_it_is_set(
    connection: Connection, workspace: WorkspaceId
) -> None:
    add_own(connection, workspace, "A", b"old", 0)
    add_global(connection, "B", b"old too", 0)
    assert secrets.open_all(connection, KEY, workspace) == {"A": Secret("old"), "B": Secret("old too")}

    secrets.seal_into(connection, KEY, "A", Secret("new"), workspace)
    secrets.seal_into(connection, KEY, "B", Secret("new too"))

    assert secrets.open_all(connection, KEY, workspace) == {"A": Secret("new"), "B": Secret("new too")}
    for table in (workspace_secrets, global_secrets):
        assert connection.execute(select(table.c.encryption_version)).scalar_one() == 1


def test_setting_a_secret_again_keeps_its_creation_and_moves_its_update(connection: Connection, workspace: WorkspaceId) -> None:
    secrets.seal_into(connection, KEY, "A", Secret("1"), workspace)
    connection.execute(
        update(workspace_secrets).values(created_at=text("now() - interval '2 h'"), updated_at=text("now() - interval '1 h'"))
    )
    before = secrets.names(connection, workspace)[0]

    secrets.seal_into(connection, KEY, "A", Secret("2"), workspace)
    after = secrets.names(connection, workspace)[0]

    assert after.created_at == before.created_at
    assert after.updated_at > before.updated_at


BROKEN = [
    pytest.param(envelope.seal(b"x", OTHER), 1, WrongKey, id="sealed under another key"),
    pytest.param(b"short", 1, Tampered, id="too short"),
    pytest.param(envelope.seal(b"x", KEY), 7, UnknownVersion, id="a newer version"),
    pytest.param(envelope.seal(CANARY.encode() + b"\xff", KEY), 1, Tampered, id="sealed, not UTF-8"),
    pytest.param(CANARY.encode() + b"\xff", 0, Tampered, id="plain, not UTF-8"),
]


@pytest.mark.parametrize(("blob", "version", "kind"), BROKEN)
def test_one_global_row_that_cannot_be_opened_aborts_everything(
    connection: Connection, workspace: WorkspaceId, blob: bytes, version: int, kind: type[CryptoError]
) -> None:
    add_global(connection, "BROKEN_ONE", blob, version)

    assert_refused(connection, workspace, kind, Scope.GLOBAL)


@pytest.mark.parametrize(("blob", "version", "kind"), BROKEN)
def test_one_row_of_the_workspace_that_cannot_be_opened_aborts_everything(
    connection: Connection, workspace: WorkspaceId, blob: bytes, version: int, kind: type[CryptoError]
) -> None:
    add_own(connection, workspace, "BROKEN_ONE", blob, version)

    assert_refused(connection, workspace, kind, Scope.WORKSPACE)


def assert_refused(connection: Connection, workspace: WorkspaceId, kind: type[CryptoError], scope: Scope) -> None:
    """The error's message names the scope and nothing else, its hint and the log name the secret, and none shows a value."""
    secrets.seal_into(connection, KEY, "A_FINE_ONE", Secret(CANARY), workspace)

    with capture_logs() as lines, pytest.raises(kind) as caught:
        secrets.open_all(connection, KEY, workspace)

    assert str(caught.value) == caught.value.message == f"failed to decrypt {scope} secret"
    assert caught.value.hint.startswith("BROKEN_ONE does not open: ")
    assert CANARY not in everything_said(caught.value)
    assert [(line["name"], line["scope"], line["workspace"]) for line in lines] == [("BROKEN_ONE", scope, workspace)]
    assert CANARY not in str(lines)


def test_a_broken_global_row_aborts_even_where_the_workspace_has_its_own(connection: Connection, workspace: WorkspaceId) -> None:
    add_global(connection, "A", b"short", 1)
    secrets.seal_into(connection, KEY, "A", Secret("own"), workspace)

    with pytest.raises(Tampered, match="global"):
        secrets.open_all(connection, KEY, workspace)


def test_a_value_that_was_pasted_as_a_name_stays_out_of_the_log(connection: Connection, workspace: WorkspaceId) -> None:
    add_own(connection, workspace, f"A={CANARY}", b"short", 1)

    with capture_logs() as lines, pytest.raises(Tampered):
        secrets.open_all(connection, KEY, workspace)

    assert lines[0]["row"] == connection.execute(select(workspace_secrets.c.id)).scalar_one()
    assert CANARY not in str(lines)


@pytest.mark.parametrize("name", ["ADMIN_TOKEN", "GITHUB_TOKEN=x", "my-key"])
@pytest.mark.parametrize("scope", Scope)
def test_a_forbidden_name_that_another_program_stored_is_not_injected(
    connection: Connection, workspace: WorkspaceId, scope: Scope, name: str
) -> None:
    if scope is Scope.GLOBAL:
        add_global(connection, name, b"x", 0)
    else:
        add_own(connection, workspace, name, b"x", 0)

    with pytest.raises(Misconfigured if scope is Scope.GLOBAL else Refused, match="inject variable"):
        secrets.open_all(connection, KEY, workspace)


@pytest.mark.parametrize("scope", Scope)
def test_a_value_larger_than_a_variable_can_be_is_named_and_not_injected(
    connection: Connection, workspace: WorkspaceId, scope: Scope
) -> None:
    def add(name: str, size: int) -> None:
        if scope is Scope.GLOBAL:
            add_global(connection, name, b"x" * size, 0)
        else:
            add_own(connection, workspace, name, b"x" * size, 0)

    add("BIG", LARGEST - len("BIG=") - 1)
    assert "BIG" in secrets.open_all(connection, KEY, workspace)
    add("TOO_BIG", LARGEST - len("TOO_BIG="))

    with pytest.raises(Misconfigured if scope is Scope.GLOBAL else Refused, match="TOO_BIG is larger than a variable can be"):
        secrets.open_all(connection, KEY, workspace)


def test_a_global_source_control_token_is_injected_only_where_the_workspace_has_its_own(
    connection: Connection, workspace: WorkspaceId
) -> None:
    add_global(connection, "GITHUB_TOKEN", b"the operator's", 0)
    with pytest.raises(Misconfigured, match="GITHUB_TOKEN"):
        secrets.open_all(connection, KEY, workspace)

    secrets.seal_into(connection, KEY, "GITHUB_TOKEN", Secret("own"), workspace)

    assert secrets.open_all(connection, KEY, workspace) == {"GITHUB_TOKEN": Secret("own")}


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("ADMIN_TOKEN", CANARY, "forbidden_name"),
        ("not a name", CANARY, "bad_name"),
        ("A", f"{CANARY}\x00", "bad_value"),
        ("A", CANARY.ljust(LARGEST), "too_large"),
        ("A", f"{CANARY}\udcff", "bad_value"),
    ],
)
def test_what_cannot_be_injected_is_not_stored(
    connection: Connection, workspace: WorkspaceId, name: str, value: str, code: str
) -> None:
    for target in (workspace, None):
        with pytest.raises(Refused) as caught:
            secrets.seal_into(connection, KEY, name, Secret(value), target)

        assert caught.value.code == code
        assert CANARY not in everything_said(caught.value)
    assert secrets.names(connection, workspace) == []


def test_a_global_source_control_token_is_refused_and_an_own_one_stored(connection: Connection, workspace: WorkspaceId) -> None:
    with pytest.raises(Refused, match="GH_TOKEN"):
        secrets.seal_into(connection, KEY, "GH_TOKEN", Secret("x"))

    secrets.seal_into(connection, KEY, "GH_TOKEN", Secret("x"), workspace)

    assert secrets.open_all(connection, KEY, workspace) == {"GH_TOKEN": Secret("x")}


@pytest.mark.parametrize("status", ["removed", None])
def test_nothing_is_stored_for_a_workspace_that_is_absent_or_removed(connection: Connection, status: str | None) -> None:
    gone = WorkspaceId(str(uuid4())) if status is None else add_workspace(connection, status)

    with pytest.raises(Refused) as caught:
        secrets.seal_into(connection, KEY, "A", Secret("x"), gone)

    assert caught.value.code == "no_workspace"
    assert connection.execute(select(workspace_secrets)).all() == []


def test_a_workspace_without_a_status_is_not_a_removed_one(connection: Connection) -> None:
    workspace = add_workspace(connection, None)

    secrets.seal_into(connection, KEY, "A", Secret("x"), workspace)

    assert secrets.open_all(connection, KEY, workspace) == {"A": Secret("x")}


def test_a_deletion_cannot_set_its_tombstone_while_a_secret_is_being_stored(database: Database) -> None:
    with database.engine.begin() as first:
        workspace = add_workspace(first)
    with database.engine.begin() as storing, database.engine.connect() as deleting:
        secrets.seal_into(storing, KEY, "A", Secret("x"), workspace)
        deleting.execute(text("SET lock_timeout = '100ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            deleting.execute(update(workspaces).where(workspaces.c.id == workspace).values(status="removed"))


def test_names_show_scope_and_dates_and_never_a_value(connection: Connection, workspace: WorkspaceId) -> None:
    secrets.seal_into(connection, KEY, "C", Secret(CANARY))
    secrets.seal_into(connection, KEY, "B", Secret(CANARY))
    secrets.seal_into(connection, KEY, "C", Secret(CANARY), workspace)
    secrets.seal_into(connection, KEY, "A", Secret(CANARY), workspace)
    blob = connection.execute(select(workspace_secrets.c.encrypted_value)).scalars().first()
    assert blob is not None

    listed = secrets.names(connection, workspace)

    assert [(row.name, row.scope) for row in listed] == [("A", Scope.WORKSPACE), ("B", Scope.GLOBAL), ("C", Scope.WORKSPACE)]
    assert [(row.name, row.scope) for row in secrets.names(connection)] == [("B", Scope.GLOBAL), ("C", Scope.GLOBAL)]
    assert all(row.created_at.tzinfo and row.updated_at.tzinfo for row in listed)
    assert CANARY not in repr(listed)
    assert repr(blob) not in repr(listed)
    assert b64encode(blob).decode() not in repr(listed)


def test_names_are_listed_when_no_row_can_be_opened(connection: Connection, workspace: WorkspaceId) -> None:
    add_own(connection, workspace, "BROKEN_ONE", b"short", 1)

    assert [row.name for row in secrets.names(connection, workspace)] == ["BROKEN_ONE"]


def test_removing_a_secret_touches_its_own_scope_alone(connection: Connection, workspace: WorkspaceId) -> None:
    other = add_workspace(connection)
    for target in (None, workspace, other):
        secrets.seal_into(connection, KEY, "A", Secret(str(target)), target)
    secrets.seal_into(connection, KEY, "B", Secret("kept"), workspace)

    assert secrets.remove(connection, "A", workspace) is True
    assert secrets.open_all(connection, KEY, workspace) == {"A": Secret("None"), "B": Secret("kept")}
    assert secrets.remove(connection, "A") is True
    assert secrets.open_all(connection, KEY, workspace) == {"B": Secret("kept")}
    assert secrets.open_all(connection, KEY, other) == {"A": Secret(other)}
    assert secrets.remove(connection, "A") is False
    assert secrets.remove(connection, "A", workspace) is False


def test_a_forbidden_name_that_another_program_stored_can_be_removed(connection: Connection, workspace: WorkspaceId) -> None:
    add_global(connection, "my-key", b"x", 0)

    assert secrets.remove(connection, "my-key") is True
    assert secrets.open_all(connection, KEY, workspace) == {}


def test_the_caller_decides_whether_a_secret_was_stored(database: Database) -> None:
    with database.engine.connect() as connection:
        secrets.seal_into(connection, KEY, "A", Secret("x"))
        connection.rollback()
        assert secrets.names(connection) == []


def test_an_error_of_the_database_shows_no_value(database: Database) -> None:
    with database.engine.connect() as connection:
        connection.execute(text("ALTER TABLE global_secrets ADD CHECK (false)"))
        with pytest.raises(Exception, match="check") as caught:
            secrets.seal_into(connection, KEY, "A", Secret(CANARY))

    assert not isinstance(caught.value, WorkerError)
    assert CANARY not in everything_said(caught.value)
