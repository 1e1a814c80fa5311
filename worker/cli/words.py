"""How the command line speaks: `error:` then `hint:`, lower case, no full stop; data on stdout, words on stderr."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from worker.cli import terminal
from worker.errors import Retryable, WorkerError

DONE: Final = 0
FAILED: Final = 1
REFUSED: Final = 2
UNREACHABLE: Final = 3
UNSAFE: Final = 4
INTERRUPTED: Final = 130

_SECOND_MS: Final = 1000
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86400
#: How many of a unit are said before the next greater one is.
_MOST: Final = {"min": 60, "h": 48}


class Unsafe(WorkerError):
    """Refused for safety: a confirmation, a reason or a proof is missing."""

    code = "unsafe"


def say(text: str) -> None:
    """One line for a person."""
    click.echo(text, err=True)


def explain(error: WorkerError) -> int:
    """Say what happened and what to do; the exit code that scripts expect."""
    fault(error.message, error.hint)
    if isinstance(error, Unsafe):
        return UNSAFE
    return UNREACHABLE if isinstance(error, Retryable) else REFUSED


def fault(message: str, hint: str = "") -> None:
    """The two lines of an error; each stays one line, whatever was typed."""
    say(f"error: {printable(message)}")
    if hint:
        say(f"hint: {printable(hint)}")


def misused(error: click.ClickException) -> int:
    """Click's own sentence in our form."""
    reason = error.format_message().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    fault(f"read command line: {reason[:1].lower()}{reason[1:]}", f"{context.command_path} --help" if context else "")
    return REFUSED


def unexpected(error: Exception) -> int:
    """Say what can be said of an error that nobody foresaw. Database drivers put values into their texts, so only the class."""
    from sqlalchemy.exc import OperationalError

    if isinstance(error, OperationalError):
        fault("use database: it did not answer", "is Postgres running, and is DATABASE_URL right? molecule-worker doctor tells")
        return UNREACHABLE
    fault(f"run command: internal error {type(error).__name__}", "the same command with --debug shows the traceback")
    return FAILED


def traceback(*, shown: bool) -> None:
    """The traceback of the error that is being handled, where it was asked for."""
    if shown:
        import traceback as trace

        say(trace.format_exc().rstrip())


def data(value: Any) -> None:
    """JSON on stdout, for programs."""
    click.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str, narrow: Sequence[terminal.Concession] = ()) -> None:
    """A table on stdout; without rows one sentence on stderr. A terminal too narrow for it costs `narrow`, in that order."""
    shown = [[_cell(value) for value in row] for row in rows]
    if not shown:
        say(empty)
        return
    laid = terminal.Table(columns, shown)
    room = terminal.room()
    if room is not None:
        laid.fit(room, narrow)
    for line in laid.lines():
        click.echo(line)


def pairs(values: Mapping[str, Any]) -> None:
    """`name  value` lines on stdout, a list one below the other; what has no value is left out."""
    known = {name: value for name, value in values.items() if value is not None}
    width = max(map(len, known), default=0)
    for name, value in known.items():
        first, *more = value if isinstance(value, list) else [value]
        click.echo(f"{name:<{width}}  {_cell(first)}")
        for line in more:
            click.echo(f"{'':<{width}}  {_cell(line)}")


def count(n: int, noun: str, nouns: str = "") -> str:
    """`1 job`, `2 jobs`."""
    return f"{n} {noun if n == 1 else nouns or noun + 's'}"


def duration(milliseconds: float) -> str:
    """`840 ms`, `3.2 s`, `4 min 10 s`, `3 h 20 min`, `12 d 4 h`."""
    if milliseconds < _SECOND_MS:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / _SECOND_MS
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    for great, length, small, part in (("min", _MINUTE_S, "s", 1), ("h", _HOUR_S, "min", _MINUTE_S)):
        if seconds < length * _MOST[great]:
            return f"{seconds // length:.0f} {great} {seconds % length // part:.0f} {small}"
    return f"{seconds // _DAY_S:.0f} d {seconds % _DAY_S // _HOUR_S:.0f} h"


def age(since: datetime) -> str:
    """`12 s`, `3 min`, `5 h`, `9 d`: how long ago, in at most six characters."""
    seconds = max(0.0, (datetime.now(UTC) - since).total_seconds())
    for unit, length, most in (("s", 1, 60), ("min", 60, 60), ("h", 3600, 48)):
        if seconds < length * most:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds // 86400:.0f} d"


def printable(text: str) -> str:
    """On one line and without anything that moves a terminal's cursor: names and output come from other people."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return printable(str(value))


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
