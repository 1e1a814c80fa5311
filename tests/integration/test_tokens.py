import base64
import hashlib

from sqlalchemy import func, select, text, update

from tests.conftest import Database
from tests.rows import add_token, add_workspace
from worker.domain import Secret, WorkspaceStatus
from worker.store import tables, tokens


def test_a_token_is_32_random_bytes_in_43_characters() -> None:
    first, second = tokens.mint().reveal(), tokens.mint().reveal()
    assert first != second
    assert len(first) == 43
    assert len(base64.urlsafe_b64decode(first + "=")) == 32


def test_only_digest_and_prefix_are_stored(database: Database) -> None:
    token = add_token(database, add_workspace(database)).reveal()
    with database.engine.connect() as connection:
        row = connection.execute(select(tables.workspace_auth_tokens)).one()
    assert bytes(row.token_hash) == hashlib.sha256(token.encode()).digest()
    assert row.prefix == token[:8]
    assert token not in repr(row)


def test_a_new_token_revokes_the_workspaces_others_and_nobody_elses(database: Database) -> None:
    mine, other = add_workspace(database), add_workspace(database)
    foreign, old, new = add_token(database, other), add_token(database, mine), add_token(database, mine)
    with database.engine.begin() as connection:
        assert tokens.owner_of(connection, old) is None
        assert tokens.owner_of(connection, new) == mine
        assert tokens.owner_of(connection, foreign) == other
        assert tokens.owner_of(connection, Secret("unknown")) is None


def test_a_removed_workspace_gets_no_token(database: Database) -> None:
    gone = add_workspace(database, WorkspaceStatus.REMOVED)
    with database.engine.begin() as connection:
        assert not tokens.replace(connection, gone, tokens.mint())
        assert not tokens.replace(connection, "0f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3", tokens.mint())
        assert connection.execute(select(func.count()).select_from(tables.workspace_auth_tokens)).scalar_one() == 0


def test_revoking_answers_how_many_were_live(database: Database) -> None:
    workspace = add_workspace(database)
    token = add_token(database, workspace)
    with database.engine.begin() as connection:
        assert tokens.revoke_all(connection, workspace) == 1
        assert tokens.revoke_all(connection, workspace) == 0
        assert tokens.owner_of(connection, token) is None


def test_the_last_use_is_noted_at_most_once_a_minute(database: Database) -> None:
    token = add_token(database, add_workspace(database))
    uses = []
    for age in (None, "59 seconds", "61 seconds"):
        if age:
            with database.engine.begin() as connection:
                connection.execute(update(tables.workspace_auth_tokens).values(last_used_at=func.now() - text(f"interval '{age}'")))
        with database.engine.begin() as connection:
            tokens.owner_of(connection, token)
        with database.engine.connect() as connection:
            recent = tables.workspace_auth_tokens.c.last_used_at > func.now() - text("interval '30 seconds'")
            uses.append(connection.execute(select(recent)).scalar_one())
    assert uses == [True, False, True]
