"""`workspaces`: create and delete them, look at them, read what they say."""

from collections.abc import Sequence
from pathlib import Path

import click
from sqlalchemy import text

from config import settings as environment
from worker.cli import context, watch, words
from worker.cli import secrets as secret_values
from worker.domain import Placement, WorkspaceId
from worker.errors import Refused
from worker.new_workspace import NewWorkspace
from worker.store import ledger, requests
from worker.store import secrets as secret_store
from worker.store import workspaces as store

_ACCESS = ("none", "read_only", "read_write")


@click.group()
def workspaces() -> None:
    """Create, list, show and delete workspaces, and read their logs."""


@workspaces.command()
@click.option("--name", required=True, help="What people call it.")
@click.option("--runtime", default="langgraph", show_default=True, help="One of the list in config/runtimes.toml.")
@click.option("--tier", type=int, default=2, show_default=True, help="1 sandboxed … 4 the whole host.")
@click.option("--model", help="The runtime's default without it.")
@click.option("--role", help="What it does, in a sentence.")
@click.option("--parent", "parent_id", metavar="ID", help="The workspace above it.")
@click.option("--org", default="", metavar="SLUG", help="The organisation that it belongs to.")
@click.option("--workspace-dir", metavar="DIR", help="A folder of the host instead of a volume.")
@click.option("--access", type=click.Choice(_ACCESS), help="To that folder. Default: read_write when there is one.")
@click.option("--secret", "asked", metavar="KEY", multiple=True, help="Ask for this secret's value; may be repeated.")
@click.option("--secret-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A dotenv file of secrets.")
@click.option("--wait", is_flag=True, help="Watch the provision until it ends.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def create(
    *,
    name: str,
    runtime: str,
    tier: int,
    model: str | None,
    role: str | None,
    parent_id: str | None,
    org: str,
    workspace_dir: str | None,
    access: str | None,
    asked: Sequence[str],
    secret_file: Path | None,
    wait: bool,
    as_json: bool,
) -> int:
    """Store a workspace and the job that provisions it, in one transaction."""
    own = context.settings()
    chosen = access or ("read_write" if workspace_dir else "none")
    wanted = NewWorkspace(name, runtime, tier, role, model, parent_id, workspace_dir, chosen)
    values = {**(secret_values.from_file(secret_file) if secret_file else {}), **{key: secret_values.ask(key) for key in asked}}
    engine = context.open_database(own)
    key = secret_values.load_key(own) if values else None
    place = Placement(org, own.backend, own.docker_host)
    with engine.begin() as connection:
        workspace_id = store.create(connection, wanted, place, environment.runtimes().runtimes)
        for secret, value in values.items():
            if key is not None:
                secret_store.seal_into(connection, key, secret, value, workspace_id)
        job_id, _ = requests.enqueue(
            connection, "workspace.provision", {"workspace_id": workspace_id}, requested_by=context.requested_by()
        )
    words.data({"workspace_id": workspace_id, "job_id": job_id}) if as_json else click.echo(workspace_id)
    if not wait:
        words.say(f"is being provisioned: molecule-worker jobs watch {job_id}")
        return words.DONE
    words.say(f"provisioning {name} ({runtime}, tier {tier})")
    return watch.watch(engine, job_id)


@workspaces.command("list")
@click.option("--all", "everything", is_flag=True, help="Removed ones too.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def list_workspaces(*, everything: bool, as_json: bool) -> None:
    """All workspaces."""
    with context.reading() as connection:
        found = store.list_all(connection, with_removed=everything)
    rows = [(w.id, w.name, str(w.status), w.runtime, w.tier, w.url) for w in found]
    if as_json:
        words.data([dict(zip(("id", "name", "status", "runtime", "tier", "url"), row, strict=True)) for row in rows])
        return
    words.table(("id", "name", "status", "runtime", "tier", "url"), rows, empty="no workspaces")


@workspaces.command()
@click.argument("workspace_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def show(workspace_id: str, *, as_json: bool) -> None:
    """One workspace: its row, what exists of it outside, its last jobs."""
    ident = context.checked_id(workspace_id, "workspace")
    with context.reading() as connection:
        found = store.get(connection, ident)
        if found is None:
            raise _absent("show")
        place = store.placement(connection, ident)
        outside = ledger.present(connection, f"workspace:{ident}")
        jobs = connection.execute(
            text("SELECT id, kind, state, created_at FROM worker.jobs WHERE subject = :s ORDER BY seq DESC LIMIT 10"),
            {"s": f"workspace:{ident}"},
        ).all()
    row = {
        **{name: getattr(found, name) for name in ("id", "name", "status", "runtime", "tier", "role", "parent_id", "url")},
        "org": (place.org or None) if place else None,
        "host": f"{place.backend}.{place.host}" if place else None,
        "outside": [thing.name for thing in outside],
    }
    if as_json:
        words.data({**row, "jobs": [job._asdict() for job in jobs]})
        return
    words.pairs({**row, "outside": ", ".join(row["outside"]) or "nothing"})
    words.table(("job", "kind", "state", "created"), jobs, empty="no jobs")


@workspaces.command()
@click.argument("workspace_id", metavar="ID")
@click.option("--tail", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many lines.")
def logs(workspace_id: str, *, tail: int) -> None:
    """What the workspace's own program printed."""
    from worker.assembly import compute_of  # noqa: PLC0415  because only this command needs the Docker client

    own = context.settings()
    ident = context.checked_id(workspace_id, "workspace")
    engine = context.open_database(own)
    with engine.connect() as connection:
        if store.get(connection, ident) is None:
            raise _absent("read logs of")
    click.echo(compute_of(own, engine).logs(ident, tail), nl=False)


@workspaces.command()
@click.argument("workspace_id", metavar="ID")
@click.option("--dry-run", is_flag=True, help="Say what would go, and do nothing.")
@click.option("--wait", is_flag=True, help="Watch it until nothing is left.")
def delete(workspace_id: str, *, dry_run: bool, wait: bool) -> int:
    """Remove a workspace, its container and all its volumes. There is no way back."""
    ident = WorkspaceId(context.checked_id(workspace_id, "workspace"))
    engine = context.open_database(context.settings())
    with engine.begin() as connection:
        found = store.get(connection, ident)
        outside = ledger.present(connection, f"workspace:{ident}")
        if found is None and not outside:
            raise _absent("delete")
        living = store.children(connection, ident)
        if living:
            listed = ", ".join(f"{child.name} ({child.id})" for child in living)
            raise words.Unsafe(f"delete workspace: it has {len(living)} children: {listed}", hint="delete the children first")
        if dry_run:
            words.say(
                f"would remove {found.name if found else ident}: {', '.join(thing.name for thing in outside) or 'nothing exists outside'}"
            )
            return words.DONE
        job_id, _ = requests.enqueue(connection, "workspace.delete", {"workspace_id": ident}, requested_by=context.requested_by())
    if not wait:
        click.echo(job_id)
        return words.DONE
    return watch.watch(engine, job_id)


def _absent(verb: str) -> Refused:
    return Refused(f"{verb} workspace: there is no such workspace", hint="molecule-worker workspaces list", code="no_workspace")
