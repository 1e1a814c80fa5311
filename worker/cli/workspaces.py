"""`workspaces`: create and delete them, look at them, read what they say."""

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from worker.cli import context, names, words
from worker.domain import DEFAULT_TIER, TIERS, Placement, Secret, WorkspaceId, WorkspaceStatus
from worker.errors import Refused

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from config.settings import Settings
    from worker.domain import Workspace
    from worker.new_workspace import NewWorkspace

_NARROW: Final = (("drop", "url"), ("brief", "id"), ("drop", "tier"), ("cut", "name"), ("drop", "runtime"))
_ACCESS: Final = ("none", "read_only", "read_write")
#: Ends up in labels and one day in host names.
_SLUG: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@click.group()
def workspaces() -> None:
    """Create, list, show and delete workspaces, and read their logs."""


@workspaces.command()
@click.option("--name", required=True, help="What people call it.")
@click.option("--runtime", default="langgraph", show_default=True, help="What runs in it; an unknown word lists them all.")
@click.option(
    "--tier",
    type=click.Choice([str(tier) for tier in TIERS]),
    default=str(DEFAULT_TIER),
    show_default=True,
    help="1 sandboxed, 2 standard, 3 privileged, 4 the whole host.",
)
@click.option("--model", help="The runtime's default without it.")
@click.option("--role", help="What it does, in a sentence.")
@click.option("--parent", "parent_id", metavar="ID", help="The workspace above it.")
@click.option("--org", default="", metavar="SLUG", help="The organisation that it belongs to.")
@click.option("--workspace-dir", metavar="DIR", help="A folder of the host instead of a volume.")
@click.option("--access", type=click.Choice(_ACCESS), help="To that folder. Default: read_write when there is one.")
@click.option("--secret", "asked", metavar="KEY", multiple=True, help="Ask for this secret's value; may be repeated.")
@click.option("--secret-file", type=click.Path(path_type=Path), help="A dotenv file of secrets.")
@click.option("--wait", is_flag=True, help="Watch the provision until it ends.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def create(
    *,
    tier: str,
    parent_id: str | None,
    org: str,
    access: str | None,
    asked: Sequence[str],
    secret_file: Path | None,
    wait: bool,
    as_json: bool,
    **wishes: Any,
) -> int:
    """Store a workspace and the job that provisions it, in one transaction; the workspace's id goes to stdout.

    \b
    Examples:
      molecule-worker workspaces create --name ada --wait
      molecule-worker workspaces create --name ada --runtime claude-code \\
          --tier 1 --secret ANTHROPIC_API_KEY --wait
    """
    from worker.new_workspace import NewWorkspace

    chosen = access or ("read_write" if wishes["workspace_dir"] else "none")
    parent = None if parent_id is None else context.checked_id(parent_id, "workspace")
    wanted = NewWorkspace(**wishes, tier=int(tier), parent_id=parent, workspace_access=chosen)
    own = context.settings()
    _refuse(wanted, org, saas=own.saas)
    values = _secrets(asked, secret_file)
    engine = context.open_database(own)
    workspace_id, job_id = _store(own, engine, wanted, org, values)
    words.data({"workspace_id": workspace_id, "job_id": job_id}) if as_json else click.echo(workspace_id)
    if wait:
        words.say(f"provisioning {wanted.name} ({wanted.runtime}, tier {tier})")
        return _watch(engine, job_id)
    words.say(f"is being provisioned: molecule-worker jobs watch {job_id}")
    return words.DONE


@workspaces.command("list")
@click.option("--all", "everything", is_flag=True, help="Removed ones too.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def list_workspaces(*, everything: bool, as_json: bool) -> None:
    """List all workspaces."""
    from worker.store import workspaces as store

    columns = ("id", "name", "status", "runtime", "tier", "url")
    with context.reading() as connection:
        found = store.list_all(connection, with_removed=everything)
    rows = [(w.id, w.name, str(w.status), w.runtime, w.tier, w.url) for w in found]
    if as_json:
        words.data([dict(zip(columns, row, strict=True)) for row in rows])
        return
    words.table(columns, rows, empty="no workspaces", narrow=_NARROW)


@workspaces.command()
@click.argument("workspace_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def show(workspace_id: str, *, as_json: bool) -> None:
    """Show one workspace: its row, what exists of it outside, its last jobs."""
    ident = names.found_id(workspace_id, "workspace")
    with context.reading() as connection:
        row, jobs = _shown(connection, ident)
    if as_json:
        words.data({**row, "jobs": jobs})
        return
    words.pairs({**row, "outside": row["outside"] or "nothing"})
    click.echo()
    rows = [(job["id"], job["kind"], job["state"], words.age(job["created_at"]), job["why"]) for job in jobs]
    words.table(("job", "kind", "state", "age", "why"), rows, empty="no jobs", narrow=(("below", "why"), ("brief", "job")))
    if jobs and jobs[0]["why"]:
        words.say(f"why: {words.printable(jobs[0]['why'])}")
        words.say(f"hint: molecule-worker jobs show {jobs[0]['id']}")


@workspaces.command()
@click.argument("workspace_id", metavar="ID")
@click.option("--tail", type=click.IntRange(1, 10_000), default=100, show_default=True, help="How many lines.")
def logs(workspace_id: str, *, tail: int) -> None:
    """Print what the workspace's own program printed."""
    from worker.store import workspaces as store

    own = context.settings()
    ident = names.found_id(workspace_id, "workspace")
    engine = context.open_database(own)
    with engine.connect() as connection:
        found = store.get(connection, ident)
    if found is None:
        raise _absent("read logs of")
    try:
        printed = _printed(own, engine, ident, tail)
    except Refused as error:
        raise _silent(found, error) from error
    if sys.stdout.isatty():
        # Because a program that the operator does not know must not drive the operator's terminal.
        printed = "\n".join(words.printable(line.expandtabs()) for line in printed.replace("\r\n", "\n").split("\n"))
    click.echo(printed, nl=False)


@workspaces.command()
@click.argument("workspace_id", metavar="ID")
@click.option("--dry-run", is_flag=True, help="Say what would go, and do nothing.")
@click.option("--wait", is_flag=True, help="Watch it until nothing is left.")
def delete(workspace_id: str, *, dry_run: bool, wait: bool) -> int:
    """Remove a workspace, its container and all its volumes. There is no way back."""
    from worker.store import requests

    ident = WorkspaceId(names.found_id(workspace_id, "workspace"))
    if not dry_run and ident != workspace_id.lower():
        whole = f"molecule-worker workspaces delete {ident}"
        raise words.Unsafe("delete workspace: its whole id is needed, because there is no way back", hint=whole)
    engine = context.open_database(context.settings())
    with engine.begin() as connection:
        doomed = _doomed(connection, ident)
        if dry_run:
            words.say(f"would remove {doomed}")
            return words.DONE
        job_id, _ = requests.enqueue(connection, "workspace.delete", {"workspace_id": ident}, requested_by=context.requested_by())
    if wait:
        return _watch(engine, job_id)
    click.echo(job_id)
    words.say(f"is being removed: molecule-worker jobs watch {job_id}")
    return words.DONE


def _refuse(wanted: "NewWorkspace", org: str, *, saas: bool) -> None:
    """Before a person is asked for a secret, and before anything is stored."""
    from config.settings import runtimes
    from worker.backends.tiers import refuse_tier
    from worker.new_workspace import refuse_unfit

    refuse_unfit(wanted, runtimes().runtimes)
    refuse_tier("create workspace", wanted.tier, saas=saas)
    if org and _SLUG.fullmatch(org) is None:
        raise Refused("create workspace: the organisation is not a slug", hint="a-z, 0-9 and dashes, at most 63", code="bad_org")


def _secrets(asked: Sequence[str], path: Path | None) -> dict[str, Secret]:
    from worker.cli import secrets

    return {**(secrets.from_file(path, own=True) if path else {}), **(secrets.ask(asked, own=True) if asked else {})}


def _store(
    own: "Settings", engine: "Engine", wanted: "NewWorkspace", org: str, values: Mapping[str, Secret]
) -> tuple[WorkspaceId, str]:
    from config.settings import runtimes
    from worker.cli import secrets
    from worker.store import requests
    from worker.store import secrets as sealed
    from worker.store import workspaces as store

    with engine.begin() as connection:
        key = secrets.sealing_key(connection, own, ()) if values else None
        names.tell_org(connection, org)
        place = Placement(org, own.backend, own.docker_host)
        workspace_id = store.create(connection, wanted, place, runtimes().runtimes)
        if key is not None:
            for name, value in values.items():
                sealed.seal_into(connection, key, name, value, workspace_id)
        args = {"workspace_id": workspace_id}
        job_id, _ = requests.enqueue(connection, "workspace.provision", args, requested_by=context.requested_by())
    return workspace_id, job_id


def _shown(connection: "Connection", ident: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from worker.store import ledger, status
    from worker.store import workspaces as store

    found = store.get(connection, ident)
    if found is None:
        raise _absent("show")
    place = store.placement(connection, ident)
    subject = f"workspace:{ident}"
    row = {
        **{name: getattr(found, name) for name in ("id", "name", "status", "runtime", "tier", "role", "parent_id", "url")},
        "org": (place.org or None) if place else None,
        "host": f"{place.backend}.{place.host}" if place else None,
        "outside": ledger.seen(connection, subject),
    }
    jobs = status.jobs(connection, state=None, failed=False, kind=None, subject=subject, most=10)
    kept = ("id", "kind", "state", "created_at")
    return row, [{**{name: job[name] for name in kept}, "why": (job["error"] or {}).get("message")} for job in jobs]


def _doomed(connection: "Connection", ident: WorkspaceId) -> str:
    """What a deletion would take away. Raises Unsafe while there are children, Refused when there is nothing."""
    from worker.store import ledger
    from worker.store import workspaces as store

    found = store.get(connection, ident)
    outside = ledger.present(connection, f"workspace:{ident}")
    if found is None and not outside:
        raise _absent("delete")
    living = store.children(connection, ident)
    if living:
        listed = ", ".join(f"{child.name} ({child.id})" for child in living)
        many = words.count(len(living), "child", "children")
        raise words.Unsafe(f"delete workspace: it has {many}: {listed}", hint="delete the children first")
    things = ", ".join(thing.name for thing in outside) or "nothing exists outside"
    return f"{words.printable(found.name) if found else ident}: {things}"


def _printed(own: "Settings", engine: "Engine", ident: str, tail: int) -> str:
    from worker.assembly import compute_of

    context.log_to_stderr()
    with closing(compute_of(own, engine)) as compute:
        return compute.logs(ident, tail)


def _silent(found: "Workspace", error: Refused) -> Refused:
    """Why there is nothing to read, where the row knows more than the backend."""
    if error.code != "no_container" or found.status is not WorkspaceStatus.FAILED:
        return error
    said = "read logs: its provision failed, and what it printed went with its container"
    hint = f"molecule-worker workspaces show {found.id} says why; retry its job, and read them while that waits"
    return Refused(said, hint=hint, code=error.code)


def _watch(engine: "Engine", job_id: str) -> int:
    from worker.cli import watch

    return watch.watch(engine, job_id)


def _absent(verb: str) -> Refused:
    return Refused(f"{verb} workspace: there is no such workspace", hint="molecule-worker workspaces list", code="no_workspace")
