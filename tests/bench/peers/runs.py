"""What others make of the same five steps: each of them on a fresh database of the same server, in processes of its own."""

import os
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import redis

from tests.bench.ground import ROOT, Database, Ground, running, vacuum
from tests.waiting import until
from worker.domain import Secret

#: Made by `make bench` from requirements-bench.lock; apart, because the tests run on requirements.lock alone.
PYTHON: Final = ROOT / ".venv-bench" / "bin" / "python"
JOBS: Final = 200
_HERE: Final = "tests.bench.peers"


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run one of them; `store` runs to its end, then `work` in each process. JOBS and STAMPS are filled in."""

    peer: str
    how: str
    processes: int
    store: tuple[str, ...] | None
    work: tuple[str, ...]
    started: int = 1  #: how often `work` is started; it may have children


def _dbos_direct(threads: int) -> Setting:
    return Setting(
        "DBOS", f"called by {threads} threads", 1, None, (f"{_HERE}.dbos_worker", "direct", str(threads), "JOBS", "STAMPS")
    )


def _dbos_queue(at_once: int, processes: int) -> Setting:
    store = (f"{_HERE}.dbos_worker", "store", "JOBS", "STAMPS")
    work = (f"{_HERE}.dbos_worker", "queue", str(at_once))
    return Setting("DBOS", f"queue, {at_once} at once", processes, store, work, processes)


def _procrastinate(form: str, at_once: int, processes: int) -> Setting:
    store = (f"{_HERE}.procrastinate_worker", "store", form, "JOBS", "STAMPS")
    work = (f"{_HERE}.procrastinate_worker", "work", form, str(at_once))
    return Setting("Procrastinate", f"{form}, {at_once} at once", processes, store, work, processes)


def _celery(children: int) -> Setting:
    options = ("--pool", "prefork", "--concurrency", str(children), "--loglevel", "WARNING", "--without-gossip", "--without-mingle")
    store = (f"{_HERE}.celery_worker", "JOBS", "STAMPS")
    return Setting("Celery", "prefork", children, store, ("celery", "-A", f"{_HERE}.celery_worker", "worker", *options))


#: The best two of each that were found by hand (also 1 and 4 threads, queues of 4 and 1,000 in one process, synchronous
#: tasks, 1 at once, and one child were slower); the first round of a run says which is better on its machine.
SETTINGS: Final = (
    _dbos_direct(8),
    _dbos_queue(8, 2),
    _procrastinate("async", 20, 1),
    _procrastinate("async", 8, 2),
    _celery(2),
)


def rate(ground: Ground, setting: Setting) -> float:
    """Jobs per second, from the beginning of the first step to the end of the last."""
    with ground.database(empty=True) as database:
        stamps = ground.folder / f"stamps-{uuid4().hex}"
        around = _around(ground, database)
        if setting.store is not None:
            with (ground.folder / "peers.log").open("ab") as log:
                subprocess.run(
                    _command(setting.store, stamps), env=around, cwd=ROOT, check=True, stdout=log, stderr=log, timeout=60
                )
            vacuum(database)
        with ExitStack() as all_of_it:
            for _ in range(setting.started):
                all_of_it.enter_context(running(_command(setting.work, stamps), around, ground.folder))
            until(lambda: _ended(stamps) >= JOBS, within=60.0, what=f"{setting.peer}, {setting.how}, to end")
        moments = [int(line.split()[1]) for line in stamps.read_text().splitlines()]
    if ground.redis is not None:
        _flush(ground.redis)
    return JOBS / ((max(moments) - min(moments)) / 1e9)


def _command(words: tuple[str, ...], stamps: Path) -> list[str]:
    filled = {"JOBS": str(JOBS), "STAMPS": str(stamps)}
    return [str(PYTHON), "-m", *(filled.get(word, word) for word in words)]


def _around(ground: Ground, database: Database) -> dict[str, str]:
    broker = {"REDIS_URL": ground.redis.reveal()} if ground.redis is not None else {}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MOLECULE_", "DBOS_"))}
    return {**kept, **broker, "PYTHONPATH": str(ROOT), "DATABASE_URL": database.url.reveal()}


def _ended(stamps: Path) -> int:
    return stamps.read_text().count("ended") if stamps.exists() else 0


def _flush(broker: Secret) -> None:
    with redis.Redis.from_url(broker.reveal()) as client:
        client.flushall()
