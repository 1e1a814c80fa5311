"""`secrets`: values come from a prompt, stdin or a dotenv file, never from argv, because argv is visible to every user."""

import sys
from pathlib import Path

import click

from config.settings import Settings
from worker.cli import context, words
from worker.crypto import keyring
from worker.domain import Secret, WorkspaceId
from worker.errors import Refused
from worker.store import secrets as store


@click.group()
def secrets() -> None:
    """Set, list and unset what workspaces find in their environment."""


@secrets.command("set")
@click.argument("key")
@click.option("--workspace", "workspace_id", help="For this workspace alone; without it, for all.")
def set_secret(key: str, *, workspace_id: str | None) -> None:
    """Store the value that stdin or the prompt gives under KEY."""
    value = ask(key)
    own = context.settings()
    sealing = load_key(own)
    with context.writing() as connection:
        store.seal_into(connection, sealing, key, value, _workspace(workspace_id))
    words.say(f"{key} is set; workspaces find it at their next start")


@secrets.command("list")
@click.option("--workspace", "workspace_id", help="What this workspace would find; without it, the global ones.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def list_secrets(*, workspace_id: str | None, as_json: bool) -> None:
    """Names, scopes and dates; never values."""
    with context.reading() as connection:
        found = store.names(connection, _workspace(workspace_id))
    rows = [(item.name, str(item.scope), item.created_at, item.updated_at) for item in found]
    if as_json:
        words.data([dict(zip(("name", "scope", "created_at", "updated_at"), row, strict=True)) for row in rows])
        return
    words.table(("name", "scope", "created", "updated"), rows, empty="no secrets")


@secrets.command()
@click.argument("key")
@click.option("--workspace", "workspace_id", help="That workspace's own; without it, the global one.")
def unset(key: str, *, workspace_id: str | None) -> None:
    """Forget KEY."""
    with context.writing() as connection:
        if not store.remove(connection, key, _workspace(workspace_id)):
            raise Refused("unset secret: there is none of that name", hint="molecule-worker secrets list", code="no_secret")
    words.say(f"{key} is unset; workspaces lose it at their next start")


def ask(key: str) -> Secret:
    """A value from the prompt on a terminal, else all of stdin without its last newline."""
    if sys.stdin.isatty():
        return Secret(str(click.prompt(key, hide_input=True, confirmation_prompt=True, err=True)))
    return Secret(sys.stdin.read().removesuffix("\n"))


def from_file(path: Path) -> dict[str, Secret]:
    """A dotenv file: KEY=value lines, blank lines and # comments; a value may be quoted whole. Raises Refused with the line's number."""
    found: dict[str, Secret] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, mark, value = text.partition("=")
        if not mark:
            raise Refused(
                f"read secrets: line {number} is not KEY=value",
                hint="see the file; its content is not repeated here",
                code="bad_file",
            )
        value = value.strip()
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        found[name.strip()] = Secret(value[1:-1] if quoted else value)
    return found


def load_key(own: Settings) -> keyring.StaticKey:
    """This installation's key."""
    given = own.secrets_encryption_key
    return keyring.load(Secret(given.get_secret_value()) if given else None, own.production, own.state_dir)


def _workspace(given: str | None) -> WorkspaceId | None:
    return None if given is None else WorkspaceId(context.checked_id(given, "workspace"))
