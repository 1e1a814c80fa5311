"""What `doctor` asks of the operation: does the clock tick, is anything held back, may programs enqueue."""

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, text

from worker.app import app
from worker.cli import words
from worker.cli.finding import Finding, Verdict, ok, warning
from worker.store import clock, debts, standing

#: A schedule that has not come round in so many of its lengths has no clock.
_LATE: Final = 2
_CLIENT: Final = "molecule_worker_client"


def findings(connection: Connection) -> Iterator[Finding]:
    """Everything about running it; the catalogue is loaded."""
    yield _clock(connection)
    yield _pauses(connection)
    yield from _debts(connection)
    yield _roles(connection)


def _clock(connection: Connection) -> Finding:
    last = clock.last_slots(connection)
    often = min(app.schedules, key=lambda schedule: schedule.every)
    run = "molecule-worker run, without --only or with --only clock"
    if often.name not in last:
        return warning("clock", "nothing has come round yet", run)
    ago = last[often.name]["ago_s"]
    said = f"{often.name} came round {words.age(last[often.name]['started_at'])} ago"
    if ago > _LATE * often.every.total_seconds():
        return warning("clock", f"{said}, and should every {words.duration(often.every.total_seconds() * 1000)}", run)
    broken = [schedule.name for schedule in app.schedules if "error" in (last.get(schedule.name, {}).get("outcome") or {})]
    if broken:
        return warning("clock", f"the last sweep of {', '.join(broken)} failed", f"molecule-worker sweep {broken[0]}")
    return ok("clock", said)


def _pauses(connection: Connection) -> Finding:
    found = standing.pauses(connection)
    if not found:
        return ok("pauses", "nothing is paused or drained")
    said = "; ".join(f"{'drained' if held.scope == 'host' else 'paused'}: {held}" for held in found)
    return warning("pauses", said, found[0].end)


def _debts(connection: Connection) -> Iterator[Finding]:
    """Fine, because a person decided so, and a warning that nobody could end would be read no more."""
    owed = debts.count(connection)
    if owed:
        count = f"{'at least ' if owed >= debts.MOST else ''}{owed} step{'s were' if owed > 1 else ' was'} skipped"
        yield Finding("debts", Verdict.OK, f"{count} and {'are' if owed > 1 else 'is'} owed", "molecule-worker jobs debts")


def _roles(connection: Connection) -> Finding:
    row = connection.execute(
        text(
            "SELECT (SELECT count(*) FROM pg_auth_members m WHERE m.roleid = r.oid) AS members, "
            "has_schema_privilege(r.oid, 'worker', 'USAGE') AND has_table_privilege(r.oid, 'worker.job_status', 'SELECT') "
            "AND has_function_privilege(r.oid, 'worker.enqueue(text,jsonb,text,timestamptz,int,text,text)', 'EXECUTE') AS may "
            "FROM pg_roles r WHERE r.rolname = :name"
        ),
        {"name": _CLIENT},
    ).one_or_none()
    migrate = "molecule-worker migrate"
    if row is None:
        mend = f"as a superuser: CREATE ROLE {_CLIENT} NOLOGIN; then {migrate}"
        return warning("roles", f"role {_CLIENT} is missing, so only the schema's owner may enqueue", mend)
    if not row.may:
        return warning("roles", f"role {_CLIENT} lacks rights that the contract gives it", migrate)
    return ok("roles", f"{_CLIENT} may enqueue, cancel, retry and read; {row.members} members")
