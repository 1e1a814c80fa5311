"""The engine complete: fair turns, delays, children, pauses, progress, a clock, retention, roles."""

from alembic import op

from worker.store.migrations import scripts

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what part 1 lacked, and write the functions."""
    connection = op.get_bind()
    scripts.run(connection, "0002_complete.sql")
    scripts.write_functions(connection)
