"""The engine reads no wall clock: moments are the database's, durations are monotonic (tests/system/test_clocks.py plays it)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("worker/engine", "worker/store", "tasks")
WALL = {
    "time": {"time", "time_ns", "gmtime", "localtime", "ctime", "strftime", "clock_gettime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
#: (file, call) → why it may.
ALLOWED = {
    (
        "worker/store/cache.py",
        "datetime.now",
    ): "the stamp of a broadcast that nobody computes with; the event's row has the database's"
}


def readings(source: str) -> Iterator[str]:
    """Calls and imports in a module that read the wall clock."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{name.name}" for name in node.names if name.name in WALL["time"])
        elif isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if node.attr in WALL.get(owner, set()):
                yield f"{owner}.{node.attr}"


def test_no_module_of_the_engine_or_the_store_or_of_a_job_reads_the_wall_clock() -> None:
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    found = {(str(file.relative_to(ROOT)), what) for file in files for what in readings(file.read_text())}
    assert len(files) > 20
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("import time; time.time()", ["time.time"]),
        ("from time import time_ns", ["time.time_ns"]),
        ("from datetime import datetime; datetime.now(UTC)", ["datetime.now"]),
        ("import datetime; datetime.datetime.utcnow()", ["datetime.utcnow"]),
        ("import datetime; datetime.date.today()", ["date.today"]),
        ("from time import monotonic; monotonic()", []),
        ("func.now()", []),
    ],
)
def test_the_scan_sees_every_way_to_read_it(line: str, what: list[str]) -> None:
    assert list(readings(line)) == what
