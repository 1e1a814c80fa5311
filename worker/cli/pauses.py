"""`jobs pause|resume`, `drain`, `undrain`: what operators hold back. Shown wherever jobs are, so that nobody forgets it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Final

import click

from worker.cli import context, names, words
from worker.errors import Refused

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_SCOPES: Final = ("kind", "org", "all")
#: Seconds between two looks whether a node is free.
_LOOK_S: Final = 0.5


@click.command()
@click.argument("scope", type=click.Choice(_SCOPES))
@click.argument("what", default="")
@click.option("--reason", help="Why; everybody who lists jobs reads it.")
def pause(scope: str, what: str, *, reason: str | None) -> None:
    """Have no job claimed of a kind, an organisation, or at all; what runs goes on to its next wait.

    \b
    Examples:
      molecule-worker jobs pause kind workspace.delete --reason audit
      molecule-worker jobs pause all --reason "moving the database"
    """
    from worker.store import status

    with context.writing() as connection:
        _known(connection, "pause", scope, _checked(scope, what))
        _hold(connection, scope, what, reason)
        n = status.concerned(connection, scope, what)
    are = f"{words.count(n, 'live job')} {'is' if n == 1 else 'are'}"
    words.say(f"{are} concerned; end it: molecule-worker jobs resume {f'{scope} {what}'.strip()}")


@click.command()
@click.argument("scope", type=click.Choice(_SCOPES))
@click.argument("what", default="")
def resume(scope: str, what: str) -> None:
    """End a pause; how many jobs were held back by it is said."""
    _free(scope, _checked(scope, what))


@click.command()
@click.argument("node")
@click.option("--reason", help="Why; everybody who lists jobs reads it.")
@click.option("--wait", is_flag=True, help="Until nothing runs there.")
def drain(node: str, *, reason: str | None, wait: bool) -> int:
    """Leave a node free: its processes claim nothing, and give their jobs back at the next boundary.

    A node is a computer on which worker processes run, by the name that it has itself; `molecule-worker doctor` lists them.
    It stays drained, also for processes that start there later, until `molecule-worker undrain NODE`.
    """
    engine = context.open_database(context.settings())
    with engine.begin() as connection:
        names.known_node(connection, "drain", node)
        _hold(connection, "host", node, reason)
    words.say(words.printable(f"end it: molecule-worker undrain {node}"))
    if wait:
        _wait_until_free(engine, node)
    return words.DONE


@click.command()
@click.argument("node")
def undrain(node: str) -> None:
    """Let a node work again."""
    names.given_node("undrain", node)
    _free("host", node)


def tell(connection: "Connection") -> None:
    """A line for each pause that holds, before anything else is read."""
    from worker.store import standing

    for held in standing.pauses(connection):
        verb = "drained" if held.scope == "host" else "paused"
        words.say(words.printable(f"{verb}: {held}"))


def _hold(connection: "Connection", scope: str, what: str, reason: str | None) -> None:
    from worker.store import requests, standing

    new = requests.pause(connection, scope, what, reason, requested_by=context.requested_by())
    held = next(held for held in standing.pauses(connection) if (held.scope, held.what) == (scope, what))
    words.say(words.printable(f"{'drained' if scope == 'host' else 'paused'}{'' if new else ' already'}: {held}"))


def _free(scope: str, what: str) -> None:
    from worker.store import requests

    with context.writing() as connection:
        _known(connection, "resume", scope, what)
        freed = requests.resume(connection, scope, what, requested_by=context.requested_by())
    name = words.printable(f"{'node' if scope == 'host' else scope} {what}".strip())
    if freed is None:
        words.say(f"{name} was not {'drained' if scope == 'host' else 'paused'}")
    elif scope == "host":
        words.say(f"{name} works again")
    else:
        words.say(f"{name} goes on: {words.count(freed, 'job')} {'was' if freed == 1 else 'were'} held back")


def _known(connection: "Connection", verb: str, scope: str, what: str) -> None:
    """Raises Refused for a kind that is none; an organisation of which nothing is known may be meant for the future."""
    if scope == "kind":
        names.known_kind(connection, verb, what)
    elif scope == "org":
        names.tell_org(connection, what)


def _checked(scope: str, what: str) -> str:
    if (scope == "all") is bool(what):
        hint = "molecule-worker jobs pause kind K | org S | all"
        raise Refused(f"read command line: {scope} takes {'no name' if scope == 'all' else 'a name'}", hint=hint, code="usage")
    return what


def _wait_until_free(engine: "Engine", node: str) -> None:
    from worker.store import status

    try:
        with _progress() as tell_count:
            quiet = 0
            # Twice, because a claim that began before the drain may end behind the first look.
            while quiet < 2:  # noqa: PLR2004
                with engine.connect() as connection:
                    n = status.concerned(connection, "host", node)
                quiet = 0 if n else quiet + 1
                if n:
                    tell_count(n)
                Event().wait(_LOOK_S)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the node stays drained: molecule-worker undrain {node}") from None
    words.say("nothing runs there")


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Says how many jobs still run there: live on a terminal, elsewhere a line whenever it changes."""
    from worker.cli import watch

    with watch.shown() as display:
        yield lambda n: display.now(f"{words.count(n, 'job')} {'runs' if n == 1 else 'run'} there")
