"""A Redis and a Postgres of a test's own, that it may kill and start again at the same address."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import text

from tests.conftest import Database, missing
from tests.system.house import lives
from tests.waiting import until
from worker import embedded
from worker.domain import Secret
from worker.store import connect
from worker.store.migrate import migrate


@dataclass
class Redis:
    """A server that keeps nothing."""

    url: Secret
    folder: Path
    pid: int
    again: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def kill(self) -> None:
        """`kill -9`."""
        os.kill(self.pid, signal.SIGKILL)
        until(lambda: not lives(self.pid))

    def start(self) -> None:
        """At the same address, with the same password, and empty."""
        argv = [str(embedded.redis_program()), str(self.folder / "redis.conf")]
        self.again.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True))
        self.pid = self.again[-1].pid


@contextmanager
def redis(folder: Path) -> Iterator[Redis]:
    """Started; ended however often it was killed."""
    service = embedded.start_redis(folder)
    if service is None or service.pid is None:
        missing("redis-server")
        return
    running = Redis(service.url, folder, service.pid)
    try:
        yield running
    finally:
        for started in running.again:
            started.kill()
            started.wait()
        service.stop()


@dataclass
class Postgres:
    """A server of its own, because its neighbours would not like what happens to it."""

    database: Database
    folder: Path

    def restart(self) -> None:
        """At once: every connection is cut, what was not committed is lost, recovery runs."""
        self._pg_ctl("-m", "immediate", "-w", "-l", str(self.folder / "log"), "restart")

    def stop(self) -> None:
        """For good."""
        self._pg_ctl("-m", "immediate", "-w", "stop")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Away for a while, at the same address afterwards."""
        argv, user = self._program()
        self.stop()
        try:
            yield
        finally:
            self._run([*argv, "-w", "-l", str(self.folder / "log"), "-o", f"-k {self.folder} -h ''", "start"], user)

    def _pg_ctl(self, *arguments: str) -> None:
        argv, user = self._program()
        self._run([*argv, *arguments], user)

    def _program(self) -> tuple[list[str], int | None]:
        # The program beside the postmaster itself, as its user: wherever the wheel keeps it.
        postmaster = Path("/proc", (self.folder / "postmaster.pid").read_text().splitlines()[0])
        argv = [str((postmaster / "exe").readlink().with_name("pg_ctl")), "-D", str(self.folder)]
        return argv, postmaster.stat().st_uid if os.geteuid() == 0 else None

    def _run(self, argv: list[str], user: int | None) -> None:
        quiet = subprocess.DEVNULL
        subprocess.run(argv, user=user, cwd="/", check=True, stdin=quiet, stdout=quiet, stderr=quiet)


@contextmanager
def postgres(*knobs: str) -> Iterator[Postgres]:
    """Started and migrated; `knobs` are statements that take effect with a restart. At the end the engine's invariants must hold."""
    # As root below /var/lib, because the wheel widens the modes of every parent of its folder.
    folder = Path(tempfile.mkdtemp(prefix="molecule-worker-tests-", dir="/var/lib" if os.geteuid() == 0 else None))
    service = embedded.start_postgres(folder)
    engine = connect.open_engine(service.url, name="tests", size=8)
    migrate(engine)
    own = Postgres(Database(service.url, engine), folder)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for knob in knobs:
            connection.execute(text(knob))
    if knobs:
        own.restart()
    try:
        yield own
        with engine.connect() as connection:
            assert connection.execute(text("SELECT what, which FROM worker.violations")).all() == []
    finally:
        engine.dispose()
        own.stop()
        shutil.rmtree(folder, ignore_errors=True)
