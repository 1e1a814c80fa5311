"""The platform's tables: created where absent, checked where present, never altered."""

from sqlalchemy import Connection, Enum, Table, inspect, text
from sqlalchemy.types import TypeEngine

from worker.domain import WorkspaceStatus
from worker.errors import Misconfigured
from worker.store import tables

#: What may stand for each of our types in a table that the platform made.
_LIKE: dict[str, set[str]] = {
    "TEXT": {"TEXT", "VARCHAR"},
    "VARCHAR": {"TEXT", "VARCHAR"},
    "INTEGER": {"INTEGER", "BIGINT", "SMALLINT"},
    "BIGINT": {"BIGINT", "INTEGER"},
    "FLOAT": {"FLOAT", "DOUBLE PRECISION", "DOUBLE_PRECISION", "REAL", "NUMERIC"},
    "JSONB": {"JSONB"},
    "ENUM": {"ENUM"},
}


class SchemaMismatch(Misconfigured):
    """An existing table lacks a column, a type or an enum value that the worker needs."""

    code = "schema_mismatch"


def adopt(connection: Connection) -> None:
    """Create what is absent. Raises SchemaMismatch with one sentence for each fault of what is present."""
    existing = set(inspect(connection).get_table_names(schema="public"))
    faults = [fault for name in sorted(existing) if (table := _wanted(name)) is not None for fault in _faults(connection, table)]
    values = connection.execute(
        text("SELECT e.enumlabel FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid WHERE t.typname = 'workspace_status'")
    ).scalars()
    present = set(values)
    if present:
        faults += [f"enum workspace_status lacks the value {value}" for value in WorkspaceStatus if value not in present]
    if faults:
        raise SchemaMismatch(
            "migrate schema: " + "; ".join(faults), hint="run the platform's own migrations first, then this again"
        )
    if not present:
        labels = ", ".join(f"'{value}'" for value in WorkspaceStatus)
        connection.execute(text(f"CREATE TYPE public.workspace_status AS ENUM ({labels})"))
    tables.platform.create_all(connection, checkfirst=True)


def make_append_only(connection: Connection, table: str) -> None:
    """UPDATE, DELETE and TRUNCATE are refused by the database itself, whoever asks."""
    for name, event, level in (("rows", "UPDATE OR DELETE", "ROW"), ("all", "TRUNCATE", "STATEMENT")):
        connection.execute(
            text(
                f"CREATE OR REPLACE TRIGGER {table}_append_only_{name} BEFORE {event} ON public.{table} "
                f"FOR EACH {level} EXECUTE FUNCTION worker.refuse_change()"
            )
        )


def _wanted(name: str) -> Table | None:
    return tables.platform.tables.get(f"public.{name}")


def _faults(connection: Connection, table: Table) -> list[str]:
    found = {c["name"]: c["type"] for c in inspect(connection).get_columns(table.name, schema="public")}
    faults = []
    for column in table.columns:
        if column.name not in found:
            faults.append(f"table {table.name} lacks the column {column.name}")
        elif not _fits(column.type, found[column.name]):
            faults.append(f"column {table.name}.{column.name} is {found[column.name]} and must be {_word(column.type)}")
    return faults


def _word(kind: TypeEngine[object]) -> str:
    return (
        "ENUM"
        if isinstance(kind, Enum)
        else kind.__class__.__name__.upper().replace("LARGEBINARY", "BYTEA").replace("STRING", "VARCHAR")
    )


def _fits(wanted: TypeEngine[object], found: TypeEngine[object]) -> bool:
    need, have = _word(wanted), _word(found)
    alike = {"DATETIME": {"TIMESTAMP"}, **_LIKE}
    return have == need or have in alike.get(need, set())
