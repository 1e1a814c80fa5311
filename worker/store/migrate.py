"""Bring the schema to head. One at a time, whoever starts it."""

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, text

#: Any constant will do; it only has to be ours (the first bytes of sha256("molecule-worker migrate")).
_LOCK = 0x6D6F6C77


def migrate(engine: Engine) -> None:
    """Run every migration that is missing. Raises `SchemaMismatch` when the platform's tables cannot carry us."""
    config = Config()
    config.set_main_option("script_location", "worker.store:migrations")
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        connection.execute(text("CREATE SCHEMA IF NOT EXISTS worker"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
