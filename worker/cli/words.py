"""How the command line speaks: `error:` then `hint:`, lower case, no full stop; data on stdout, words on stderr."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click

from worker.errors import Retryable, WorkerError

DONE: Final = 0
FAILED: Final = 1
REFUSED: Final = 2
UNREACHABLE: Final = 3
UNSAFE: Final = 4
INTERRUPTED: Final = 130


class Unsafe(WorkerError):
    """Refused for safety: a confirmation, a reason or a proof is missing."""

    code = "unsafe"


def say(text: str) -> None:
    """One line for a person."""
    click.echo(text, err=True)


def explain(error: WorkerError) -> int:
    """Say what happened and what to do; the exit code that scripts expect."""
    say(f"error: {error.message}")
    if error.hint:
        say(f"hint: {error.hint}")
    if isinstance(error, Unsafe):
        return UNSAFE
    return UNREACHABLE if isinstance(error, Retryable) else REFUSED


def unexpected(error: Exception) -> int:
    """Say what can be said of an error that nobody foresaw. Database drivers put values into their texts, so only the class."""
    from sqlalchemy.exc import OperationalError  # noqa: PLC0415  because --help must not load it

    if isinstance(error, OperationalError):
        say("error: use database: it did not answer")
        say("hint: is Postgres running, and is DATABASE_URL right? `molecule-worker up` starts one of its own")
        return UNREACHABLE
    say(f"error: internal: {type(error).__name__}")
    say("hint: the same command with --debug shows the traceback")
    return FAILED


def data(value: Any) -> None:
    """JSON on stdout, for programs."""
    click.echo(json.dumps(value, default=_plain, ensure_ascii=False, indent=2))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """A table on stdout that fits the terminal; without rows one sentence on stderr."""
    from rich.console import Console  # noqa: PLC0415  because --help must not load it
    from rich.table import Table  # noqa: PLC0415

    shown = [[_cell(value) for value in row] for row in rows]
    if not shown:
        say(empty)
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold" if column == "id" else "ellipsis", no_wrap=column != "id")
    for row in shown:
        grid.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, emoji=False).print(grid)


def pairs(values: Mapping[str, Any]) -> None:
    """`name  value` lines on stdout."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {_cell(value)}")


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return str(value)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
