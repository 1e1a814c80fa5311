"""The tokens that workspaces show: who a bearer is, and that an old one opens nothing any more.

Only the SHA-256 and the first eight characters are stored, so that a copy of the table opens nothing.
Locks are taken in one order everywhere: the workspace's row, then its tokens, because a tombstone takes them so.
"""

import hashlib
import secrets
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, func, insert, select, update

from worker.domain import Secret, WorkspaceId, WorkspaceStatus
from worker.store import tables

_TOKENS: Final = tables.workspace_auth_tokens
_BYTES: Final = 32
_PREFIX: Final = 8
#: `last_used_at` is for people: a write for each heartbeat would cost more than it tells.
_USE_IS_NOTED_EVERY: Final = timedelta(minutes=1)


def mint() -> Secret:
    """32 random bytes as base64url without padding: 43 characters."""
    return Secret(secrets.token_urlsafe(_BYTES))


def replace(connection: Connection, workspace_id: str, token: Secret) -> bool:
    """From the commit on, `token` is the workspace's only live one. False (nothing written) where it is removed or absent."""
    if not _lock_workspace(connection, workspace_id):
        return False
    revoke_all(connection, workspace_id)
    connection.execute(
        insert(_TOKENS).values(workspace_id=workspace_id, token_hash=_digest(token), prefix=token.reveal()[:_PREFIX])
    )
    return True


def revoke_all(connection: Connection, workspace_id: str) -> int:
    """No token of the workspace is live; answers how many were. The caller holds the workspace's row."""
    live = (_TOKENS.c.workspace_id == workspace_id) & _TOKENS.c.revoked_at.is_(None)
    return connection.execute(update(_TOKENS).where(live).values(revoked_at=func.now())).rowcount


def seen(connection: Connection, token: Secret) -> WorkspaceId | None:
    """The workspace whose live token this is at this moment, else None. Nothing is locked: no write may rely on it."""
    live = (_TOKENS.c.token_hash == _digest(token)) & _TOKENS.c.revoked_at.is_(None)
    owner = connection.execute(select(_TOKENS.c.workspace_id).where(live)).scalar_one_or_none()
    return WorkspaceId(owner) if owner is not None else None


def owner_of(connection: Connection, token: Secret) -> WorkspaceId | None:
    """The workspace whose live token this is, else None. Its row stays locked until the transaction ends.

    The token is looked up again under the lock, because a tombstone or a new token may have come while we waited for it.
    """
    owner = seen(connection, token)
    if owner is None:
        return None
    _lock_workspace(connection, owner)
    live = (_TOKENS.c.token_hash == _digest(token)) & _TOKENS.c.revoked_at.is_(None)
    stale = func.coalesce(_TOKENS.c.last_used_at < func.now() - _USE_IS_NOTED_EVERY, True)
    to_note = connection.execute(select(stale).where(live)).scalar_one_or_none()
    if to_note is None:
        return None
    if to_note:
        connection.execute(update(_TOKENS).where(live).values(last_used_at=func.now()))
    return owner


def _lock_workspace(connection: Connection, workspace_id: str) -> bool:
    """Lock the row if there is one; True where it is not removed."""
    row = select(tables.status_text).where(tables.workspaces.c.id == workspace_id).with_for_update(key_share=True)
    return connection.execute(row).scalar_one_or_none() not in {None, WorkspaceStatus.REMOVED}


def _digest(token: Secret) -> bytes:
    return hashlib.sha256(token.reveal().encode()).digest()
