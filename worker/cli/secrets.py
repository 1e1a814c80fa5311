"""`secrets`: values come from a prompt, stdin or a dotenv file, never from argv, because argv is visible to every user."""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from worker.cli import context, words
from worker.domain import Secret, WorkspaceId
from worker.errors import Refused

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from config.settings import Settings
    from worker.crypto.keyring import StaticKey

_NEVER = "pipe the value in or type it at the prompt; change the one that was typed, the shell's history has it"


@click.group()
def secrets() -> None:
    """Set, list and unset what workspaces find in their environment."""


@secrets.command("set", context_settings={"ignore_unknown_options": True})
@click.argument("key", required=False)
@click.argument("rest", nargs=-1, metavar="")
@click.option("--workspace", "workspace_id", metavar="ID", help="For this workspace alone; without it, for all.")
@click.option("--file", "path", type=click.Path(path_type=Path), help="A dotenv file: every KEY=value line of it.")
def set_secret(key: str | None, rest: Sequence[str], *, workspace_id: str | None, path: Path | None) -> None:
    """Store the value that stdin or the prompt gives under KEY.

    \b
    Examples:
      molecule-worker secrets set OPENAI_API_KEY    (asks for the value)
      pass show openai | molecule-worker secrets set OPENAI_API_KEY
      molecule-worker secrets set --workspace <id> --file .env
    """
    if rest or "=" in (key or ""):
        raise Refused("set secret: a value on the command line is visible to every user", hint=_NEVER, code="value_in_argv")
    if (key is None) == (path is None):
        raise Refused("set secret: one KEY is needed, or --file", hint="molecule-worker secrets set --help", code="no_name")
    workspace = _workspace(workspace_id)
    values = from_file(path, own=workspace is not None) if path else ask([str(key)], own=workspace is not None)
    _store(values, workspace)
    for name in values:
        words.say(f"{name} is set; workspaces find it at their next start")


@secrets.command("list")
@click.option("--workspace", "workspace_id", metavar="ID", help="What this workspace would find; without it, the global ones.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def list_secrets(*, workspace_id: str | None, as_json: bool) -> None:
    """List names, scopes and dates; never values."""
    from worker.store import secrets as store

    workspace = _workspace(workspace_id)
    with context.reading() as connection:
        found = store.names(connection, workspace)
    rows = [(item.name, str(item.scope), item.created_at, item.updated_at) for item in found]
    if as_json:
        words.data([dict(zip(("name", "scope", "created_at", "updated_at"), row, strict=True)) for row in rows])
        return
    words.table(
        ("name", "scope", "created", "updated"),
        rows,
        empty="no secrets",
        narrow=(("drop", "created"), ("drop", "updated"), ("cut", "name")),
    )


@secrets.command()
@click.argument("key")
@click.option("--workspace", "workspace_id", metavar="ID", help="That workspace's own; without it, the global one.")
def unset(key: str, *, workspace_id: str | None) -> None:
    """Forget KEY."""
    from worker.store import secrets as store

    workspace = _workspace(workspace_id)
    with context.writing() as connection:
        if not store.remove(connection, key, workspace):
            raise Refused("unset secret: there is none of that name", hint="molecule-worker secrets list", code="no_secret")
    words.say(f"{key} is unset; workspaces lose it at their next start")


def ask(keys: Sequence[str], *, own: bool) -> dict[str, Secret]:
    """Values from the prompt on a terminal; else one value, all of stdin without its last newline. Raises Refused."""
    _refuse_names(keys, own=own)
    if not sys.stdin.isatty() and len(keys) > 1:
        raise Refused("read secrets: stdin holds one value only", hint="several of them come from a dotenv file", code="one_value")
    return _bearable({key: _given(key) for key in keys})


def from_file(path: Path, *, own: bool) -> dict[str, Secret]:
    """A dotenv file: KEY=value lines, blank lines and # comments; a value may be quoted whole.

    Raises Refused with the line's number; what stands there is never repeated.
    """
    found: dict[str, Secret] = {}
    for number, line in enumerate(_lines(path), start=1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, mark, value = text.partition("=")
        if not mark:
            raise _bad_file(f"line {number} is not KEY=value")
        value = value.strip()
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        found[name.strip()] = _nonempty(value[1:-1] if quoted else value, f"the value in line {number} is empty")
    _refuse_names(list(found), own=own)
    return _bearable(found)


def sealing_key(
    connection: "Connection", own: "Settings", replaced: Collection[str], workspace: WorkspaceId | None = None
) -> "StaticKey":
    """The key to seal under, made where there is none. Raises Misconfigured, and Unsafe for one that opens nothing of what stays.

    `replaced` are the names that are set: the workspace's own, or the global ones.
    """
    from worker.assembly import refuse_new_key
    from worker.store import secrets as store

    refuse_new_key(own, connection)
    key = context.load_key(own)
    closed = store.sealed_under_another(connection, key, replaced, workspace)
    if closed:
        raise words.Unsafe(
            f"seal secret: the key here, {key.fingerprint()}, opens none of the {closed} that are stored, so no key would open all",
            hint="set SECRETS_ENCRYPTION_KEY to the key that sealed them; where it is lost, `secrets unset` them first",
        )
    return key


def _store(values: Mapping[str, Secret], workspace: WorkspaceId | None) -> None:
    from worker.store import secrets as store

    own = context.settings()
    with context.writing() as connection:
        sealing = sealing_key(connection, own, values, workspace)
        for name, value in values.items():
            store.seal_into(connection, sealing, name, value, workspace)


def _given(key: str) -> Secret:
    if sys.stdin.isatty():
        return Secret(str(click.prompt(key, hide_input=True, confirmation_prompt=True, err=True)))
    try:
        return _nonempty(sys.stdin.read().removesuffix("\n").removesuffix("\r"), "the value on stdin is empty")
    except UnicodeDecodeError:
        fault = Refused("read secret: stdin is not UTF-8 text", hint="encode binary values as base64", code="bad_value")
    raise fault  # outside the handler, because a UnicodeDecodeError carries the whole value


def _nonempty(value: str, reason: str) -> Secret:
    if not value:
        raise Refused(f"read secret: {reason}", hint="an empty one counts as missing; `secrets unset` takes one away", code="empty")
    return Secret(value)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        reason = (error.strerror or "it cannot be read").lower()
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    raise _bad_file(reason)


def _bad_file(reason: str) -> Refused:
    return Refused(f"read secrets file: {reason}", hint="see the file; its content is not repeated here", code="bad_file")


def _refuse_names(names: Sequence[str], *, own: bool) -> None:
    """Before a person is asked for a value."""
    from worker.forbidden import Scope, refuse_name

    for name in names:
        refuse_name(name, Scope.WORKSPACE if own else Scope.GLOBAL)


def _bearable(values: dict[str, Secret]) -> dict[str, Secret]:
    """Before a key is made for them."""
    from worker.forbidden import refuse_large

    for name, value in values.items():
        refuse_large(name, value)
    return values


def _workspace(given: str | None) -> WorkspaceId | None:
    return None if given is None else WorkspaceId(context.checked_id(given, "workspace"))
