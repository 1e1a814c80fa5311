"""`doctor`: a look at everything that the worker leans on; it changes nothing and never shows an address with a password."""

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import click

from worker.cli import context, terminal, words
from worker.cli.finding import Finding, Verdict, faulty, ok
from worker.errors import Misconfigured

if TYPE_CHECKING:
    from config.settings import Settings

_SERVICES: Final = ("postgres", "redis", "broker")
_STYLES: Final = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.WRONG: "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def doctor(*, as_json: bool) -> int:
    """Look at every dependency: ok, or what is wrong and how to mend it. Changes nothing.

    The exit code is 0 when nothing is wrong, 3 when something that is needed does not answer, else 2. A warning is not wrong.
    """
    context.log_to_stderr()
    found: list[Finding] = []
    for finding in _examined():
        found.append(finding)
        if not as_json:
            _show(finding)
    counts = Counter(finding.verdict for finding in found)
    if as_json:
        words.data({"ok": not counts[Verdict.WRONG], "checks": [_public(finding) for finding in found]})
    else:
        words.say(", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict))
    if any(finding.unreachable for finding in found):
        return words.UNREACHABLE
    return words.REFUSED if counts[Verdict.WRONG] else words.DONE


def _examined() -> Iterator[Finding]:
    from worker.cli import checks_host, checks_store, checks_watch

    try:
        own = context.settings()
    except Misconfigured as error:
        yield faulty("settings", error)
        return
    yield ok("settings", _summary(own))
    for finding in (*checks_store.findings(own), *checks_host.findings(own)):
        yield _of_embedded(own, finding)
    yield from checks_watch.findings(own)


def _of_embedded(own: "Settings", finding: Finding) -> Finding:
    """The finding as it stands for whoever uses the services of `up`, which nobody else starts."""
    from worker import stack

    if finding.name not in _SERVICES or not finding.mend:
        return finding
    if own.database_url is None and (left := stack.left_over(own.state_dir)):
        said = f"no `up` runs in {own.state_dir}; left over from one that was killed: {', '.join(sorted(left))}"
        return replace(finding, said=said, mend="start `molecule-worker up` again: it takes them over")
    url = stack.running(own.state_dir).get("DATABASE_URL")
    if url is None or own.database_url is None or own.database_url.get_secret_value() != url:
        return finding
    return replace(finding, mend="`up` starts it again within seconds once it has ended; where it does not, read what `up` says")


def _summary(own: "Settings") -> str:
    from worker import stack

    where = ", of the stack in " + str(own.state_dir) if stack.running(own.state_dir) else ""
    return f"{'production' if own.production else 'development'}, backend {own.backend}, host {own.docker_host}{where}"


def _show(finding: Finding) -> None:
    mark = click.style(f"{finding.verdict:<8}", fg=_STYLES[finding.verdict]) if sys.stdout.isatty() else f"{finding.verdict:<8}"
    indent = " " * 21
    said, *more = terminal.wrapped(words.printable(finding.said), indent, indent)
    click.echo(f"{mark} {finding.name:<11} {said.removeprefix(indent)}")
    mend = terminal.wrapped(words.printable(finding.mend), f"{indent}→ ", f"{indent}  ") if finding.mend else []
    for line in [*more, *mend]:
        click.echo(line)


def _public(finding: Finding) -> dict[str, str | bool]:
    return {
        "name": finding.name,
        "verdict": str(finding.verdict),
        "said": finding.said,
        "mend": finding.mend,
        "unreachable": finding.unreachable,
    }
