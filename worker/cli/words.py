"""How the command line speaks: `error:` then `hint:`, lower case, no full stop; data on stdout, words on stderr."""

import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from worker.errors import Retryable, WorkerError

DONE: Final = 0
FAILED: Final = 1
REFUSED: Final = 2
UNREACHABLE: Final = 3
UNSAFE: Final = 4
INTERRUPTED: Final = 130

_SECOND_MS: Final = 1000
_MINUTE_S: Final = 60
#: Columns of a table on a terminal of which nothing is known; elsewhere nothing is cut.
_USUAL_WIDTH: Final = 80
#: Below this a shortened column says nothing any more.
_LEAST_WIDTH: Final = 12
_GAP: Final = 2


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


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str, less: Sequence[str] = (), short: str = "") -> None:
    """A table on stdout; without rows one sentence on stderr.

    On a terminal it fits: the columns in `less` go, in that order, and `short` is shortened. Elsewhere nothing is cut, because
    a program reads it.
    """
    shown = [[_cell(value) for value in row] for row in rows]
    if not shown:
        say(empty)
        return
    widths = {name: max(map(_width, (name, *(row[place] for row in shown)))) for place, name in enumerate(columns)}
    if sys.stdout.isatty():
        _fit(widths, shutil.get_terminal_size((_USUAL_WIDTH, 24)).columns, less, short)
    for row in [list(columns), *shown]:
        cells = dict(zip(columns, row, strict=True))
        line = (" " * _GAP).join(_padded(cells[name], width) for name, width in widths.items())
        click.echo(line.rstrip())


def pairs(values: Mapping[str, Any]) -> None:
    """`name  value` lines on stdout, a list one below the other; what has no value is left out."""
    known = {name: value for name, value in values.items() if value is not None}
    width = max(map(len, known), default=0)
    for name, value in known.items():
        first, *more = value if isinstance(value, list) else [value]
        click.echo(f"{name:<{width}}  {_cell(first)}")
        for line in more:
            click.echo(f"{'':<{width}}  {_cell(line)}")


def duration(milliseconds: float) -> str:
    """`840 ms`, `3.2 s`, `4 min 10 s`."""
    if milliseconds < _SECOND_MS:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / _SECOND_MS
    return f"{seconds:.1f} s" if seconds < _MINUTE_S else f"{seconds // _MINUTE_S:.0f} min {seconds % _MINUTE_S:.0f} s"


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


def _fit(widths: dict[str, int], room: int, less: Sequence[str], short: str) -> None:
    for name in less:
        spare = max(0, widths.get(short, 0) - _LEAST_WIDTH)
        if _total(widths) - spare > room:
            widths.pop(name, None)
    excess = _total(widths) - room
    if excess > 0 and short in widths:
        widths[short] = max(_LEAST_WIDTH, widths[short] - excess)


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _padded(text: str, width: int) -> str:
    from rich.cells import set_cell_size

    return set_cell_size(text, width) if _width(text) <= width else set_cell_size(text, width - 1) + "…"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return printable(str(value))


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
