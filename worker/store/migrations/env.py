"""Alembic's entry: the connection comes from `worker.store.migrate`, which holds the lock."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table_schema="worker", transaction_per_migration=False)
with context.begin_transaction():
    context.run_migrations()
