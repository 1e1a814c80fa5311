"""`jobs debts`: which steps were skipped, why, and by whom."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from worker.cli import context, terminal, words

_PUBLIC: Final = ("step", "reason", "requested_by", "at")
_MOST_LISTED: Final = 1000
#: Why is what an operator looks for.
_NARROW: Final[tuple[terminal.Concession, ...]] = (
    *(("below", "reason"), ("brief", "job"), ("brief", "subject")),
    *(("drop", "age"), ("cut", "subject")),
)


@click.command()
@click.option("--most", type=click.IntRange(1, _MOST_LISTED), default=50, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def debts(*, most: int, as_json: bool) -> None:
    """List the steps that were skipped and are owed, the newest first. They stay when their job is forgotten.

    `jobs retry ID --from STEP` takes a skip back while its job goes on.
    """
    from worker.store import debts as store

    with context.reading() as connection:
        found = store.newest(connection, most + 1)
    if len(found) > most:
        found = found[:most]
        words.say(f"the newest {most} of more{f': --most {min(most * 4, _MOST_LISTED)}' if most < _MOST_LISTED else ''}")
    if as_json:
        words.data(
            [{"job": debt["job_id"], "subject": debt["subject"], **one} for debt, one in zip(found, public(found), strict=True)]
        )
        return
    rows = [(d["job_id"], d["subject"], d["step"], words.age(d["at"]), d["requested_by"], d["reason"]) for d in found]
    words.table(("job", "subject", "step", "age", "by", "reason"), rows, empty="nothing is owed", narrow=_NARROW)


def public(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Debts of a job as its JSON has them."""
    return [{name: debt[name] for name in _PUBLIC} for debt in found]


def show(found: Sequence[Mapping[str, Any]]) -> None:
    """A table of what one job owes; nothing where it owes nothing."""
    if found:
        click.echo()
        rows = [(d["step"], words.age(d["at"]), d["requested_by"], d["reason"]) for d in found]
        words.table(("owed", "age", "by", "reason"), rows, empty="", narrow=(("below", "reason"),))
