"""The catalogue of job kinds in the database: `migrate` writes it, `run` compares its own with it."""

import json
from collections.abc import Iterable

from sqlalchemy import Connection, text

from worker.engine.kinds import Kind
from worker.errors import Misconfigured


def write(connection: Connection, kinds: Iterable[Kind], *, backend: str, host: str) -> None:
    """Insert or renew every kind, and where a workspace goes that nobody placed. Kinds of other releases stay."""
    for kind in kinds:
        connection.execute(
            text("INSERT INTO worker.definitions (kind, steps) VALUES (:kind, :steps) ON CONFLICT DO NOTHING"),
            {"kind": kind.name, "steps": list(kind.machine.names)},
        )
        connection.execute(
            text(
                "INSERT INTO worker.kinds "
                "(kind, subject_prefix, subject_arg, args, steps, queue, only_forward, supersedes, widens, skippable, definition) "
                "VALUES (:kind, :prefix, :arg, CAST(:args AS jsonb), :steps, :queue, :only_forward, :supersedes, :widens, "
                ":skippable, (SELECT d.id FROM worker.definitions d WHERE d.kind = :kind AND d.steps = CAST(:steps AS text[]))) "
                "ON CONFLICT (kind) DO UPDATE SET subject_prefix = excluded.subject_prefix, subject_arg = excluded.subject_arg, "
                "args = excluded.args, steps = excluded.steps, queue = excluded.queue, only_forward = excluded.only_forward, "
                "supersedes = excluded.supersedes, widens = excluded.widens, skippable = excluded.skippable, "
                "definition = excluded.definition, written_at = now()"
            ),
            _row(kind),
        )
    connection.execute(
        text("UPDATE worker.installation SET default_backend = :backend, default_host = :host"), {"backend": backend, "host": host}
    )


def differing(connection: Connection, kinds: Iterable[Kind]) -> list[str]:
    """Kinds of ours that the database lacks or has otherwise. Raises Misconfigured when there is no catalogue at all."""
    if connection.execute(text("SELECT to_regclass('worker.kinds')")).scalar() is None:
        raise Misconfigured("read catalogue: the schema is not there", hint="molecule-worker migrate")
    stored = {row.kind: list(row.steps) for row in connection.execute(text("SELECT kind, steps FROM worker.kinds"))}
    return [kind.name for kind in kinds if stored.get(kind.name) != list(kind.machine.names)]


def _row(kind: Kind) -> dict[str, object]:
    return {
        "kind": kind.name,
        "prefix": kind.subject_prefix,
        "arg": kind.subject_arg,
        "args": json.dumps(kind.rules()),
        "steps": list(kind.machine.names),
        "queue": kind.queue,
        "only_forward": kind.machine.only_forward,
        "supersedes": kind.supersedes,
        "widens": list(kind.widens),
        "skippable": list(kind.skippable),
    }
