"""The engine's tables, and the platform's where they do not exist. Forward only: it holds the record of what exists outside."""

from importlib import resources

from alembic import op

from worker.store import platform

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create both; refuse an existing platform table that lacks what is needed."""
    connection = op.get_bind()
    platform.adopt(connection)
    script = resources.files("worker.store.migrations").joinpath("sql", "0001_engine.sql").read_text()
    connection.exec_driver_sql(script.replace("%", "%%"))
    platform.make_append_only(connection, "structure_events")
