"""Bring the schema to head. One at a time, whoever starts it.

Alembic is loaded by those who migrate, and so is what they do while others are at work (in_use.py): the daemon only compares, and
each of its processes would carry the libraries.
"""

from importlib import resources

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from worker.errors import Misconfigured

#: Any constant will do; it only has to be ours (the first bytes of sha256("molecule-worker migrate")).
_LOCK = 0x6D6F6C77
#: SQLSTATEs of a schema or a table that is not there, and of one that this user may not look into.
_ABSENT = frozenset({"42P01", "3F000"})
_DENIED = "42501"


def migrate(engine: Engine, *, patience_s: float = 60.0) -> None:
    """Run every migration that is missing, for as long trying to get its locks.

    Raises `SchemaMismatch` when the platform's tables cannot carry us, Misconfigured when the schema is a newer release's, and
    Unreachable when somebody held ours all the time.
    """
    from worker.store import in_use  # noqa: PLC0415  because of the daemon's memory, see above

    in_use.insist(engine, _to_head, patience_s=patience_s)


def _to_head(engine: Engine) -> None:
    from alembic import command  # noqa: PLC0415  because of the daemon's memory, see above
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", "worker.store:migrations")
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        _refuse_newer(_stored(connection))
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS worker"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.execute(text("SELECT worker.grant_rights()"))


def refuse_other(connection: Connection) -> str:
    """This release's revision, which the database has. Raises Misconfigured when it has an older or a newer one, or none."""
    stored = _stored(connection)
    *_, head = revisions()
    if stored == head:
        return head
    _refuse_newer(stored)
    raise Misconfigured(
        f"compare schema: it is at revision {stored or 'none'} and must be at {head}", hint="molecule-worker migrate"
    )


def _stored(connection: Connection) -> str | None:
    """What the database says; None where there is no such table. In a savepoint, because the caller may be in a transaction."""
    try:
        with connection.begin_nested():
            return connection.execute(text("SELECT version_num FROM worker.alembic_version")).scalar()
    except DBAPIError as error:
        state = getattr(error.orig, "pgcode", None)
        if state == _DENIED:
            hint = "use the user that ran `molecule-worker migrate`"
            raise Misconfigured("compare schema: this user may not read it", hint=hint) from error
        if state not in _ABSENT:
            raise
        return None


def _refuse_newer(stored: str | None) -> None:
    *_, head = known = revisions()
    if stored is not None and stored not in known:
        hint = "run that release, or restore a backup from before it"
        raise Misconfigured(f"compare schema: revision {stored} is a newer release's, this one is at {head}", hint=hint)


def revisions() -> list[str]:
    """This release's revisions, oldest first: the names of their files begin with them."""
    files = resources.files("worker.store.migrations").joinpath("versions").iterdir()
    return sorted(file.name.partition("_")[0] for file in files if file.name.endswith(".py"))
