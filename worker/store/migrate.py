"""Bring the schema to head. One at a time, whoever starts it."""

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from worker.errors import Misconfigured

#: Any constant will do; it only has to be ours (the first bytes of sha256("molecule-worker migrate")).
_LOCK = 0x6D6F6C77


def migrate(engine: Engine) -> None:
    """Run every migration that is missing. Raises `SchemaMismatch` when the platform's tables cannot carry us."""
    config = _config()
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS worker"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def refuse_other(connection: Connection) -> str:
    """This release's revision, which the database has. Raises Misconfigured when it has an older or a newer one, or none."""
    script = ScriptDirectory.from_config(_config())
    found = connection.execute(text("SELECT to_regclass('worker.alembic_version')")).scalar()
    stored = connection.execute(text("SELECT version_num FROM worker.alembic_version")).scalar() if found else None
    head = script.get_current_head()
    if stored == head:
        return str(head)
    if stored is not None and stored not in {revision.revision for revision in script.walk_revisions()}:
        hint = "run that release, or restore a backup from before it"
        raise Misconfigured(f"compare schema: revision {stored} is a newer release's, this one is at {head}", hint=hint)
    raise Misconfigured(
        f"compare schema: it is at revision {stored or 'none'} and must be at {head}", hint="molecule-worker migrate"
    )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "worker.store:migrations")
    return config
