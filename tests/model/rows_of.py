"""What the real tables hold, in the words of the model."""

from typing import Any

from psycopg2.extensions import connection as RawConnection  # noqa: N812  because it is a class

from tests.model.store import Store

#: Seconds by which a stored moment may differ: the real clock runs on during an example, the model's only when it is moved.
SLACK_S = 25.0

_ALL = """
PREPARE everything AS SELECT jsonb_build_object(
    'jobs', (SELECT coalesce(jsonb_object_agg(j.id, jsonb_build_object('state', j.state, 'direction', j.direction, 'position', j.position,
        'attempt', j.attempt, 'parked', j.parked, 'paused', j.paused, 'woken', j.woken, 'process', j.process_id, 'fence', j.fence,
        'claims', j.claims, 'crashes', j.crashes, 'priority', j.priority, 'org', j.org, 'args', j.args,
        'cancel', j.cancel_requested_at IS NOT NULL, 'superseded_by', j.superseded_by, 'error', j.error ->> 'code',
        'started', j.started_at IS NOT NULL, 'finished', j.finished_at IS NOT NULL)), '{}') FROM worker.jobs j),
    'moments', (SELECT coalesce(jsonb_object_agg(j.id, jsonb_build_array(extract(epoch FROM j.run_at - clock_timestamp()), j.due)), '{}')
        FROM worker.jobs j WHERE j.state IN ('queued', 'waiting')),
    'steps', (SELECT coalesce(jsonb_object_agg(s.job_id || ' ' || s.direction || ' ' || s.position, jsonb_build_object('name', s.name,
        'status', s.status, 'attempt', s.attempt, 'fence', s.fence, 'facts', s.facts)), '{}') FROM worker.steps s),
    'subjects', (SELECT coalesce(jsonb_object_agg(s.key, jsonb_build_array(s.fence, s.job_id)), '{}') FROM worker.subjects s),
    'children', (SELECT coalesce(jsonb_object_agg(c.parent || ' ' || c.position || ' ' || c.number,
        jsonb_build_array(c.job_id, c.made, c.state, c.told)), '{}') FROM worker.children c),
    'processes', (SELECT coalesce(jsonb_object_agg(p.id, jsonb_build_array(p.lease_until > clock_timestamp(), p.in_doubt)), '{}')
        FROM worker.processes p),
    'violations', (SELECT coalesce(jsonb_agg(jsonb_build_array(v.what, v.which)), '[]') FROM worker.violations v))
"""


def prepare(connection: RawConnection) -> None:
    """Plan the look once, because it is taken after every request."""
    with connection.cursor() as cursor:
        cursor.execute(_ALL)


def real(connection: RawConnection) -> dict[str, Any]:
    """Everything of which the rules speak, in one statement."""
    with connection.cursor() as cursor:
        cursor.execute("EXECUTE everything")
        row = cursor.fetchone()
    assert row is not None
    found: dict[str, Any] = row[0]
    return found


def ideal(store: Store) -> dict[str, Any]:
    """The same of the model."""
    return {
        "jobs": {
            job.id: {
                **{name: getattr(job, name) for name in _SAME},
                "args": dict(job.args),
                "error": job.error["code"] if job.error else None,
            }
            for job in store.jobs.values()
        },
        "steps": {
            f"{job.id} {way} {at}": {
                "name": row.name,
                "status": row.status,
                "attempt": row.attempt,
                "fence": row.fence,
                "facts": dict(row.facts),
            }
            for job in store.jobs.values()
            for (way, at), row in job.steps.items()
        },
        "subjects": {key: [subject.fence, subject.holder] for key, subject in store.subjects.items()},
        "children": {
            f"{parent} {position} {number}": [child.job, child.made, child.state, child.told]
            for parent, position in {(child.parent, child.position): None for child in store.children}
            for number, child in enumerate(
                (child for child in store.children if (child.parent, child.position) == (parent, position)), 1
            )
        },
        "violations": [],
    }


_SAME = (
    *("state", "direction", "position", "attempt", "parked", "paused", "woken", "process", "fence", "claims", "crashes"),
    *("priority", "org", "cancel", "superseded_by", "started", "finished"),
)


def differences(store: Store, connection: RawConnection) -> list[str]:
    """Sentences; empty when model and rows agree."""
    rows, model = real(connection), ideal(store)
    wrong = [f"{what}: rows {rows[what]}, model {model[what]}" for what in ("violations",) if rows[what] != model[what]]
    for what in ("jobs", "steps", "subjects", "children"):
        for key in sorted(rows[what].keys() | model[what].keys()):
            wrong += _unlike(f"{what} {key}", rows[what].get(key), model[what].get(key))
    for ident, (seconds, due) in rows["moments"].items():
        job = store.jobs[ident]
        if abs(seconds - (job.run_at - store.now)) > SLACK_S:
            wrong.append(f"{ident} is due in {seconds} s, in the model in {job.run_at - store.now} s")
        if due and job.run_at > store.now:
            wrong.append(f"{ident} counts as due, in the model it is not")
    for number, process in store.processes.items():
        row = rows["processes"].get(str(number), [False, process.in_doubt])  # of who is long dead nothing is kept
        wrong += _unlike(f"process {number} is alive, in doubt", row, [process.lease_until > store.now, process.in_doubt])
    return wrong


def _unlike(what: str, row: Any, model: Any) -> list[str]:
    if isinstance(row, dict) and isinstance(model, dict):
        return [f"{what} {name}: rows {row[name]}, model {model.get(name)}" for name in row if row[name] != model.get(name)]
    return [f"{what}: rows {row}, model {model}"] if row != model else []
