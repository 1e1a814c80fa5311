"""How wide the terminal is, and what a table gives up to fit it. Elsewhere nothing is cut, because a program reads it."""

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Final, Literal

#: Columns of a terminal of which nothing is known.
_USUAL_WIDTH: Final = 80
#: Below this a shortened column says nothing any more.
_LEAST_WIDTH: Final = 12
_GAP: Final = 2
#: An id, with the noun before it: whoever needs that sees it in the kind.
_ID: Final = re.compile(r"(?:[a-z]+:)?([0-9a-f]{8})(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: `below` moves a column to a line of its own under its row, `brief` leaves the first digits of its ids, `drop` takes it away,
#: `cut` shortens it.
Concession = tuple[Literal["below", "brief", "drop", "cut"], str]
#: Of every table of jobs: where one stands and why are what an operator looks for, so these stay.
JOBS: Final[tuple[Concession, ...]] = (
    *(("below", "why"), ("brief", "id"), ("brief", "subject")),
    *(("drop", "age"), ("cut", "subject")),
)


class Table:
    """Rows of text, laid out for a given room."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._rows = [dict(zip(columns, row, strict=True)) for row in rows]
        self._widths = dict.fromkeys(columns, 0)
        self._below: list[str] = []
        for name in columns:
            self._measure(name)

    def fit(self, room: int, concessions: Sequence[Concession]) -> None:
        """Make concessions in their order until it fits."""
        self._room = room
        for what, name in concessions:
            excess = sum(self._widths.values()) + _GAP * (len(self._widths) - 1) - room
            if excess <= 0:
                return
            getattr(self, f"_{what}_column")(name, excess)

    def lines(self) -> "list[str]":
        """The heading, then each row."""
        found = [self._line({name: name for name in self._widths})]
        for row in self._rows:
            found.append(self._line(row))
            found += [line for name in self._below if row[name] not in {"", "-"} for line in self._under(row[name])]
        return found

    def _line(self, row: dict[str, str]) -> str:
        return (" " * _GAP).join(_padded(row[name], width) for name, width in self._widths.items()).rstrip()

    def _under(self, cell: str) -> list[str]:
        indent = " " * (next(iter(self._widths.values())) + _GAP)
        return _wrap(cell, self._room, indent, indent)

    def _measure(self, name: str) -> None:
        self._widths[name] = max(map(_width, (name, *(row[name] for row in self._rows))))

    def _below_column(self, name: str, _excess: int) -> None:
        del self._widths[name]
        self._below.append(name)

    def _brief_column(self, name: str, _excess: int) -> None:
        self._rows = [{**row, name: _ID.sub(r"\1", row[name])} for row in self._rows]
        self._measure(name)

    def _drop_column(self, name: str, _excess: int) -> None:
        del self._widths[name]

    def _cut_column(self, name: str, excess: int) -> None:
        self._widths[name] = min(self._widths[name], max(_LEAST_WIDTH, self._widths[name] - excess))


def room() -> int | None:
    """Columns of the terminal that shows stdout; None where none does."""
    return shutil.get_terminal_size((_USUAL_WIDTH, 24)).columns if sys.stdout.isatty() else None


def wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    """The text behind `first`, on a terminal in lines that fit it and begin with `rest`."""
    columns = room()
    return [first + text] if columns is None else _wrap(text, columns, first, rest)


def _wrap(text: str, columns: int, first: str, rest: str) -> list[str]:
    # Ids, addresses and commands are copied, so no word is broken: a terminal breaks what is too long by itself.
    return textwrap.wrap(
        text,
        max(columns, len(rest) + _LEAST_WIDTH),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first + text]


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _padded(text: str, width: int) -> str:
    from rich.cells import set_cell_size

    return set_cell_size(text, width) if _width(text) <= width else set_cell_size(text, width - 1) + "…"
