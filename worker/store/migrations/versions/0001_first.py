"""The engine's tables, and the platform's where they do not exist. Forward only: it holds the record of what exists outside."""

from alembic import op

from worker.store import platform
from worker.store.migrations import scripts

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create both; refuse an existing platform table that lacks what is needed."""
    connection = op.get_bind()
    platform.adopt(connection)
    scripts.run(connection, "0001_engine.sql")
    scripts.run(connection, "functions/00_append_only.sql")
    platform.make_append_only(connection, "structure_events")
