"""Secrets at rest: global ones and those of a workspace, sealed on the way in and opened all or none.

Every function works in the caller's transaction. Values are `Secret` and never leave by a message or the log.
"""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog
from sqlalchemy import CompoundSelect, Connection, Row, and_, delete, false, func, literal, not_, select, union_all
from sqlalchemy.dialects.postgresql import insert

from worker.crypto import envelope
from worker.crypto.keyring import StaticKey
from worker.domain import Secret, WorkspaceId, WorkspaceStatus
from worker.errors import CryptoError, Refused, Tampered
from worker.forbidden import Scope, is_name, refuse_forbidden, refuse_large, refuse_name, refuse_unbearable
from worker.store.tables import global_secrets, workspace_secrets, workspaces

log = structlog.get_logger()

#: As many of the newest are opened to see whether a key fits.
_MOST: Final = 1000


@dataclass(frozen=True, slots=True)
class StoredName:
    """What may be shown of a secret."""

    name: str
    scope: Scope
    created_at: datetime
    updated_at: datetime


def open_all(connection: Connection, key: StaticKey, workspace_id: WorkspaceId) -> dict[str, Secret]:
    """Name → value of everything stored for the workspace: global ones first, its own win. All of it or nothing.

    Raises a CryptoError ("failed to decrypt global secret" or "… workspace secret"; its hint names the secret) when a single row
    cannot be opened, also one that is overridden; Refused or Misconfigured for what may not or cannot be injected.
    """
    values: dict[str, Secret] = {}
    own: set[str] = set()
    for row in connection.execute(_rows(workspace_id, "id", "key", "encrypted_value", "encryption_version")):
        values[row.key] = _opened(row, key, workspace_id)
        if row.scope == Scope.WORKSPACE:
            own.add(row.key)
    refuse_forbidden(values, own=own)
    refuse_unbearable(values, own=own)
    return values


def seal_into(connection: Connection, key: StaticKey, name: str, value: Secret, workspace_id: WorkspaceId | None = None) -> None:
    """Store `value` under `name`, sealed as version 1, over whatever stood there. Without a workspace it is global.

    Raises Refused: a forbidden or malformed name, a value with a NUL byte or too large, a workspace that is absent or removed.
    """
    refuse_name(name, _scope(workspace_id))
    refuse_large(name, value)
    row = {"key": name, "encrypted_value": envelope.seal(_payload(value), key), "encryption_version": envelope.STATIC}
    if workspace_id is None:
        statement = insert(global_secrets).values(row)
        unique = ["key"]
    else:
        _refuse_absent(connection, workspace_id)
        statement = insert(workspace_secrets).values({**row, "workspace_id": workspace_id})
        unique = ["workspace_id", "key"]
    written = {
        "encrypted_value": statement.excluded.encrypted_value,
        "encryption_version": statement.excluded.encryption_version,
        "updated_at": func.now(),
    }
    connection.execute(statement.on_conflict_do_update(index_elements=unique, set_=written))


def names(connection: Connection, workspace_id: WorkspaceId | None = None) -> list[StoredName]:
    """List what the workspace would receive (without one: the global secrets) by name; its own hides a global one."""
    rows = connection.execute(_rows(workspace_id, "key", "created_at", "updated_at"))
    found = {row.key: StoredName(row.key, Scope(row.scope), row.created_at, row.updated_at) for row in rows}
    return [found[name] for name in sorted(found)]


def sealed_otherwise(connection: Connection, key: StaticKey | None, most: int = _MOST) -> tuple[int, int]:
    """Of the newest `most` stored secrets: how many were looked at, and how many this key does not open.

    None at all before the first migration.
    """
    if connection.execute(select(func.to_regclass("public.global_secrets"))).scalar() is None:
        return 0, 0
    stored = union_all(
        *(
            select(table.c.encrypted_value, table.c.encryption_version, table.c.updated_at)
            for table in (global_secrets, workspace_secrets)
        )
    ).subquery()
    rows = connection.execute(select(stored).order_by(stored.c.updated_at.desc()).limit(most)).all()
    return len(rows), sum(not _opens(row, key) for row in rows)


def sealed_under_another(
    connection: Connection, key: StaticKey, replaced: Collection[str], workspace_id: WorkspaceId | None = None
) -> int:
    """How many secrets stay stored and sealed when this key opens none of them; 0 when it opens one, or there is none.

    `replaced` are the names that are about to be written over: the workspace's own, or the global ones.
    """
    its_own = false() if workspace_id is None else workspace_secrets.c.workspace_id == workspace_id
    stored = union_all(
        *(
            select(table.c.encrypted_value, table.c.encryption_version, table.c.updated_at).where(
                table.c.encryption_version != envelope.PLAIN, not_(and_(scope, table.c.key.in_(replaced)))
            )
            for table, scope in ((global_secrets, literal(workspace_id is None)), (workspace_secrets, its_own))
        )
    ).subquery()
    rows = connection.execute(select(stored).order_by(stored.c.updated_at.desc()).limit(_MOST)).all()
    return 0 if any(_opens(row, key) for row in rows) else len(rows)


def remove(connection: Connection, name: str, workspace_id: WorkspaceId | None = None) -> bool:
    """Remove the secret of that scope, and answer whether there was one. Any name may go, a forbidden one most of all."""
    if workspace_id is None:
        statement = delete(global_secrets).where(global_secrets.c.key == name)
    else:
        mine = workspace_secrets.c
        statement = delete(workspace_secrets).where(mine.workspace_id == workspace_id, mine.key == name)
    return connection.execute(statement).rowcount > 0


def _scope(workspace_id: WorkspaceId | None) -> Scope:
    return Scope.GLOBAL if workspace_id is None else Scope.WORKSPACE


def _rows(workspace_id: WorkspaceId | None, *columns: str) -> CompoundSelect[Any]:
    """Global rows, then those of the workspace: one statement, so that both come from one moment."""
    everyone = select(literal(Scope.GLOBAL.value).label("scope"), *(global_secrets.c[name] for name in columns))
    own = select(literal(Scope.WORKSPACE.value).label("scope"), *(workspace_secrets.c[name] for name in columns))
    return union_all(everyone, own.where(workspace_secrets.c.workspace_id == workspace_id)).order_by("scope")


def _opened(row: Row[Any], key: StaticKey, workspace_id: WorkspaceId) -> Secret:
    try:
        return _text(envelope.open_sealed(row.encrypted_value, row.encryption_version, key))
    except CryptoError as error:
        # A malformed name is left out, because people paste values where the name goes; the row's id always finds it.
        name = row.key if is_name(row.key) else None
        log.error(  # noqa: TRY400  because the trace adds nothing to the code, and locals hold sealed bytes
            "secret cannot be opened",
            code=error.code,
            scope=row.scope,
            name=name,
            row=row.id,
            version=row.encryption_version,
            workspace=workspace_id,
            key=key.fingerprint(),
        )
        # The message is the platform's, shown to tenants to the letter; which one it is stands in the hint.
        hint = f"{name} does not open: {error.hint}" if name else error.hint
        raise type(error)(f"failed to decrypt {row.scope} secret", hint=hint) from error


def _text(payload: bytes) -> Secret:
    with suppress(UnicodeDecodeError):
        return Secret(payload.decode())
    # Outside a handler, because a UnicodeDecodeError carries the whole payload and would become the context.
    raise Tampered("open secret: the value is not UTF-8 text", hint="set the secret again")


def _opens(row: Row[Any], key: StaticKey | None) -> bool:
    try:
        envelope.open_sealed(row.encrypted_value, row.encryption_version, key)
    except CryptoError:
        return False
    return True


def _payload(value: Secret) -> bytes:
    text = value.reveal()
    if "\0" in text:
        raise Refused("store secret: the value holds a NUL byte", hint="an environment variable cannot hold one", code="bad_value")
    with suppress(UnicodeEncodeError):
        return text.encode()
    # Outside a handler, because a UnicodeEncodeError carries the whole value and would become the context.
    raise Refused("store secret: the value is not UTF-8 text", hint="encode binary values as base64", code="bad_value")


def _refuse_absent(connection: Connection, workspace_id: WorkspaceId) -> None:
    """Share-lock the row until the caller commits, because a deletion must not set its tombstone in between."""
    # Also NULL is alive, because the platform's column allows it.
    living = workspaces.c.status.is_distinct_from(WorkspaceStatus.REMOVED.value)
    query = select(workspaces.c.id).where(workspaces.c.id == workspace_id, living)
    if connection.execute(query.with_for_update(read=True)).first() is None:
        raise Refused("store secret: there is no such workspace", hint="molecule-worker workspaces list", code="no_workspace")
