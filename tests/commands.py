"""The real console script as a child, in an environment that the test decides; what a person at a terminal would see."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from tests.conftest import Database

_ROOT = Path(__file__).parent.parent
COMMAND = str(Path(sys.executable).with_name("molecule-worker"))
#: Everything that a refused command could have written to.
_TABLES = (
    *("public.workspaces", "public.workspace_secrets", "public.global_secrets", "public.structure_events"),
    *("worker.jobs", "worker.job_events", "worker.steps", "worker.subjects", "worker.ledger", "worker.placements"),
)


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one `error:` line without its mark."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("error: ")

    @property
    def hint(self) -> str:
        lines = [line for line in self.err.splitlines() if line.startswith("hint: ")]
        assert len(lines) == 1, self.err
        return lines[0].removeprefix("hint: ")


@dataclass(frozen=True)
class Shell:
    """A terminal: its variables, and nothing of the machine's own."""

    variables: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, stdin: str = "", **variables: str) -> Ran:
        done = subprocess.run(
            [COMMAND, *arguments],
            input=stdin.encode(),
            env=self.environment(**variables),
            capture_output=True,
            check=False,
            timeout=60,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    def each(self, *arguments: str, given: Sequence[Mapping[str, str]]) -> list[Ran]:
        """The same command under each of these variables, side by side."""
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda variables: self(*arguments, **variables), given))

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """A command that goes on; a group of its own, as a terminal gives it."""
        return subprocess.Popen(
            [COMMAND, *arguments],
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def environment(self, **variables: str) -> dict[str, str]:
        """Names of the machine that programs need, ours, and the tree under test before whatever is installed."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "CI") if name in os.environ}
        return {**kept, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(_ROOT), **self.variables, **variables}

    def on_terminal(self, *arguments: str, typed: Sequence[str] = (), columns: int = 80, **variables: str) -> tuple[int, str]:
        """Exit code, and all that a terminal of that width showed; each of `typed` is typed at a prompt of its own."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.execve(COMMAND, [COMMAND, *arguments], self.environment(COLUMNS=str(columns), TERM="xterm", **variables))
        shown = b""
        for line in typed:
            shown += _read_until(terminal, b": ")
            os.write(terminal, f"{line}\n".encode())
        with suppress(OSError):  # EIO: the other end has closed
            while part := os.read(terminal, 65536):
                shown += part
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
        return os.waitstatus_to_exitcode(status), shown.decode()


def rows(database: Database) -> dict[str, int]:
    """How many rows each table has."""
    with database.engine.connect() as connection:
        return {table: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in _TABLES}


def end(child: "subprocess.Popen[Any]", number: int = signal.SIGTERM, *, within: float = 30.0) -> tuple[int, str, str]:
    """Signal the whole group, as a terminal does, and collect what was said."""
    os.killpg(child.pid, number)
    out, err = child.communicate(timeout=within)
    return child.returncode, out, err


def _read_until(terminal: int, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        seen += os.read(terminal, 1024)
    return seen
