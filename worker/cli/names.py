"""Names that people type: one that is not known is refused where the set is closed.

Of an open set (organisations, subjects) it is taken, because it may be meant for the future, and said.
"""

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from worker.cli import context, words
from worker.domain import parse_id
from worker.errors import Refused

if TYPE_CHECKING:
    from sqlalchemy import Connection

#: What narrow tables show of an id, or more of it.
_BEGINNING: Final = re.compile(r"[0-9a-fA-F]{8}[0-9a-fA-F-]{0,27}")
_LOWEST: Final = "00000000-0000-0000-0000-000000000000"
#: How many known names are listed where none is near.
_MOST_LISTED: Final = 20


def known(verb: str, what: str, given: str, names: Collection[str]) -> str:
    """`given`, one of a closed set. Raises Refused with the nearest name, or with all of them where none is near."""
    import difflib

    if given in names:
        return given
    near = difflib.get_close_matches(given, names, n=1)
    listed = ", ".join(sorted(names)[:_MOST_LISTED]) or "none"
    hint = f"did you mean {near[0]}?" if near else f"known {what}s: {listed}"
    raise Refused(f'{verb}: unknown {what} "{given[:60]}"', hint=hint, code=f"unknown_{what}")


def known_kind(connection: "Connection", verb: str, given: str | None) -> None:
    """Refuse a kind that no job has. Raises Refused."""
    from worker.store import status

    if given is not None:
        known(verb, "kind", given, status.kinds(connection))


def tell_org(connection: "Connection", org: str) -> None:
    """Say so where nothing belongs to this organisation yet."""
    from worker.store import status

    if org and not status.has_org(connection, org):
        words.say(f"nothing belongs to the organisation {words.printable(org)} yet")


def given_node(verb: str, given: str) -> None:
    """Refuse no name at all. Raises Refused."""
    if not given:
        hint = f"molecule-worker {verb} NODE; molecule-worker doctor lists them"
        raise Refused(f"{verb}: a node has a name", hint=hint, code="usage")


def known_node(connection: "Connection", verb: str, given: str) -> None:
    """Refuse a name of which no process and no drain is known: nothing would be held, and nothing waited for. Raises Refused."""
    from worker.store import status

    given_node(verb, given)
    nodes, serving = status.nodes(connection), status.nodes_serving(connection, given)
    if given in nodes or status.is_drained(connection, given):
        return
    if serving is not None:
        said = f'{verb}: "{given[:60]}" is a host of workspaces, and a node is where worker processes run'
        hint = f"its queue is served from: {', '.join(serving) or 'nowhere'}"
        raise Refused(said, hint=hint, code="not_a_node")
    hint = f"worker processes run on: {', '.join(nodes[:_MOST_LISTED]) or 'none'}"
    raise Refused(f'{verb}: no process is known on node "{given[:60]}"', hint=hint, code="unknown_node")


def found_id(given: str, what: str) -> str:
    """A UUID, or the one that begins so and is stored, because narrow tables show its beginning. Raises Refused."""
    from worker.store import status

    if not _BEGINNING.fullmatch(given):
        return context.checked_id(given, what)
    try:
        low, high = (parse_id(given + rest[len(given) :]) for rest in (_LOWEST, _LOWEST.replace("0", "f")))
    except ValueError:
        return context.checked_id(given, what)
    with context.reading() as connection:
        found = status.begun(connection, what, low, high)
    hint = f"molecule-worker {what}s list"
    if not found:
        raise Refused(f"find {what}: there is no such {what}", hint=hint, code=f"no_{what}")
    if len(found) > 1:
        raise Refused(f"find {what}: several ids begin so", hint=f"{hint} --json shows them whole", code="several")
    return found[0]
