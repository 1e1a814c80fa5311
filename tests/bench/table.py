"""The table that a run ends with: every row says what was measured, on how little it could be done, and what was wanted."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH: Final = 100


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement in people's words. `met` is None where nothing was measured."""

    what: str
    measured: str
    floor: str = "–"
    ratio: str = "–"
    target: str = ""
    met: bool | None = None


def spread(values: Sequence[float], unit: str = "ms", *, tail: int = 95, digits: int = 0) -> str:
    """`p50 4 p95 7 p99 9 ms, n 300`. `tail` is the highest percentile that so few values can bear."""
    cuts = [cut for cut in (50, 95, 99) if cut <= tail]
    shown = " ".join(f"p{cut} {percentile(values, cut):.{digits}f}" for cut in cuts)
    return f"{shown} {unit}, n {len(values)}"


def percentile(values: Sequence[float], cut: int) -> float:
    """The smallest value that at least `cut` percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * cut // 100) - 1)]


def times(measured: float, floor: float) -> str:
    """How many times the floor."""
    if not floor:
        return "–"
    ratio = measured / floor
    return f"{ratio:.2f}×" if ratio < 10 else f"{ratio:.0f}×"


def show(rows: Sequence[Row], title: str) -> None:
    """On stdout, 100 columns wide at most."""
    grid = Table(box=box.SIMPLE, title_justify="left", title=title, pad_edge=False, padding=(0, 1, 0, 0))
    for name, width in (("what", 24), ("measured", 24), ("floor, same run", 19), ("ratio", 6), ("to reach", 11), ("", 1)):
        grid.add_column(name, overflow="fold", width=width)
    for row in rows:
        grid.add_row(row.what, row.measured, row.floor, row.ratio, row.target, {True: "✓", False: "✗", None: "–"}[row.met])
        grid.add_row()
    Console(width=_WIDTH, file=sys.stdout, highlight=False, markup=False, emoji=False).print(grid)
