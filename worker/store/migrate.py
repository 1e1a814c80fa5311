"""Bring the schema to head. One at a time, whoever starts it.

Alembic is loaded by those who migrate, and so is what they do while others are at work (in_use.py): the daemon only compares, and
each of its processes would carry the libraries.
"""

from importlib import resources

from sqlalchemy import Connection, Engine, text

from worker.errors import Misconfigured

#: Any constant will do; it only has to be ours (the first bytes of sha256("molecule-worker migrate")).
_LOCK = 0x6D6F6C77


def migrate(engine: Engine, *, patience_s: float = 60.0) -> None:
    """Run every migration that is missing, for as long trying to get its locks.

    Raises `SchemaMismatch` when the platform's tables cannot carry us, and Unreachable when somebody held ours all the time.
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
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS worker"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.execute(text("SELECT worker.grant_rights()"))


def refuse_other(connection: Connection) -> str:
    """This release's revision, which the database has. Raises Misconfigured when it has an older or a newer one, or none."""
    found = connection.execute(text("SELECT to_regclass('worker.alembic_version')")).scalar()
    stored = connection.execute(text("SELECT version_num FROM worker.alembic_version")).scalar() if found else None
    *_, head = known = revisions()
    if stored == head:
        return head
    if stored is not None and stored not in known:
        hint = "run that release, or restore a backup from before it"
        raise Misconfigured(f"compare schema: revision {stored} is a newer release's, this one is at {head}", hint=hint)
    raise Misconfigured(
        f"compare schema: it is at revision {stored or 'none'} and must be at {head}", hint="molecule-worker migrate"
    )


def revisions() -> list[str]:
    """This release's revisions, oldest first: the names of their files begin with them."""
    files = resources.files("worker.store.migrations").joinpath("versions").iterdir()
    return sorted(file.name.partition("_")[0] for file in files if file.name.endswith(".py"))
