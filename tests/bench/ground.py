"""What the measurements stand on: a Postgres and a Redis of their own, and the daemon as real processes."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import Engine, create_engine, text

from tests.waiting import until
from worker import embedded
from worker.cli import words
from worker.domain import Secret
from worker.store import connect
from worker.store.jobs import NAMESPACE
from worker.store.migrate import migrate

ROOT: Final = Path(__file__).parent.parent.parent
_QUIET_S: Final = 1.9
_LONGEST_S: Final = 60.0
_REST: Final = {"succeeded", "failed", "cancelled"}
_ALIVE: Final = """
SELECT count(*) FROM worker.processes p WHERE cardinality(p.queues) > 0 AND p.lease_until > clock_timestamp() AND EXISTS (
    SELECT FROM pg_locks l WHERE l.locktype = 'advisory' AND l.classid = :namespace AND l.objid = p.id::oid AND l.granted)
"""


class Teller:
    """Progress on stderr: a line when a measurement begins, then one every second or two."""

    def __init__(self) -> None:
        self._began = monotonic()
        self._told = 0.0

    def begin(self, what: str) -> None:
        """A new measurement."""
        self._told = monotonic()
        words.say(f"[{self._told - self._began:5.1f} s] {what}")

    def step(self, done: int, total: int) -> None:
        """How far it is; said only when nothing was said for a while."""
        if monotonic() - self._told > _QUIET_S:
            self._told = monotonic()
            words.say(f"[{self._told - self._began:5.1f} s]   {done} of {total}")


@dataclass(frozen=True, slots=True)
class Database:
    """A migrated database."""

    url: Secret
    engine: Engine


class Ground:
    """One Postgres server, one Redis where there is a program for it, and a folder; `open` ends them."""

    def __init__(self, folder: Path, postgres: Secret, redis: Secret | None) -> None:
        self.folder = folder
        self.redis = redis
        self._address = postgres.reveal().replace("/postgres?", "/{}?")
        admin = self._address.format("postgres").replace("postgresql:", "postgresql+psycopg2:")
        self._admin = create_engine(admin, isolation_level="AUTOCOMMIT")

    @classmethod
    @contextmanager
    def open(cls) -> Iterator["Ground"]:
        """Start both; the folder is below /var/lib for root, because embedded Postgres widens the modes of its parents."""
        with ExitStack() as closing:
            folder = Path(tempfile.mkdtemp(prefix="molecule-worker-bench-", dir="/var/lib" if os.geteuid() == 0 else None))
            closing.callback(shutil.rmtree, folder, ignore_errors=True)
            postgres = embedded.start_postgres(folder / "postgres")
            closing.callback(postgres.stop)
            redis = embedded.start_redis(folder / "redis")
            if redis is not None:
                closing.callback(redis.stop)
            ground = cls(folder, postgres.url, redis.url if redis is not None else None)
            yield ground
            ground._admin.dispose()

    @contextmanager
    def database(self, *, empty: bool = False) -> Iterator[Database]:
        """A fresh database at head, or with nothing in it."""
        name = f"b_{uuid4().hex[:12]}"
        with self._admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        url = Secret(self._address.format(name))
        engine = connect.open_engine(url, name="bench", size=2)
        if not empty:
            migrate(engine)
        yield Database(url, engine)
        engine.dispose()
        with self._admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))

    def durability(self) -> str:
        """The server's settings that a rate of commits stands and falls with."""
        with self._admin.connect() as connection:
            names = ("server_version", "synchronous_commit", "fsync")
            version, synchronous, fsync = (str(connection.execute(text(f"SHOW {name}")).scalar_one()) for name in names)
        return f"PostgreSQL {version.split()[0]}, synchronous_commit {synchronous}, fsync {fsync}"

    def environment(self, database: Database, **more: str) -> dict[str, str]:
        """What a process of the daemon is told; nothing of this process's own worker settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MOLECULE_") and name not in _OURS}
        redis = {"REDIS_URL": self.redis.reveal()} if self.redis is not None else {}
        state = self.folder / "state"
        return {
            **kept,
            **redis,
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": database.url.reveal(),
            "MOLECULE_BACKEND": "memory",
            "MOLECULE_WORKER_STATE_DIR": str(state),
            "MOLECULE_WORKER_RECEIVER_ADDR": f"127.0.0.1:{embedded.free_port()}",
            "MOLECULE_WORKER_ADMIN_ADDR": f"127.0.0.1:{embedded.free_port()}",
            **more,
        }


_OURS: Final = {"DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL", "PLATFORM_URL", "SECRETS_ENCRYPTION_KEY"}


@contextmanager
def daemon(
    ground: Ground, database: Database, *, processes: int = 1, more: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """The daemon with the toy kinds beside its own, ready to work."""
    around = ground.environment(database, MOLECULE_WORKER_PROCESSES=str(processes), **(more or {}))
    with running([sys.executable, "-m", "tests.bench.daemon"], around, ground.folder) as process:
        until(lambda: alive(database) == processes, within=30.0, what="the daemon to be ready")
        yield process


@contextmanager
def running(command: list[str], around: Mapping[str, str], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a session of its own, its words in `daemon.log`; stopped at the end, killed when it does not stop."""
    with (folder / "daemon.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=dict(around), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def alive(database: Database) -> int:
    """How many worker processes live (their session lock is held) and serve their host."""
    return int(ask(database, _ALIVE, namespace=NAMESPACE))


@contextmanager
def ends(database: Database) -> Iterator[Callable[[str], str]]:
    """A function that waits for the end of a job and answers its state, by the announcement that every client may listen to."""
    listening = connect.open_raw(database.url, name="bench listens")
    with listening.cursor() as cursor:
        cursor.execute("LISTEN worker_jobs")

    def wait(job: str) -> str:
        last = monotonic() + _LONGEST_S
        while (left := last - monotonic()) > 0:
            select.select([listening], [], [], left)
            listening.poll()
            while listening.notifies:
                said = json.loads(listening.notifies.pop(0).payload)
                if said["id"] == job and said["state"] in _REST:
                    return str(said["state"])
        raise AssertionError(f"job {job} did not end within {_LONGEST_S:.0f} s")

    yield wait
    listening.close()


def vacuum(database: Database) -> None:
    """After rows were stored in bulk, because a planner with old statistics makes everybody slow."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def ask(database: Database, question: str, **values: Any) -> Any:
    """The first value of a question's first row."""
    with database.engine.begin() as connection:
        return connection.execute(text(question), values).scalar()
