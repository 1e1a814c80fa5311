"""DBOS: a workflow of five steps, from a queue or called directly by several threads."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dbos import DBOS, DBOSClient, DBOSConfig

from tests.bench.peers.stamps import STEPS, stamp

_QUEUE = "bench"


def _step(number: int, file: str) -> dict[str, Any]:
    stamp(file, number)
    return {}


_durable_step = DBOS.step(name="step")(_step)


def _five(file: str) -> None:
    for number in range(STEPS):
        _durable_step(number, file)


_durable_five = DBOS.workflow(name="five")(_five)


def _launch() -> None:
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": os.environ["DATABASE_URL"],
        "log_level": "WARNING",
        "executor_id": str(os.getpid()),
        # The same for every process, because an application dequeues only what its own version stored.
        "application_version": "1",
    }
    DBOS(config=config)
    DBOS.launch()


def _store(jobs: int, file: str) -> None:
    """Make the tables, then store without any executor at work."""
    _launch()
    DBOS.register_queue(_QUEUE, polling_interval_sec=0.1)
    DBOS.destroy()
    client = DBOSClient(system_database_url=os.environ["DATABASE_URL"])
    for _ in range(jobs):
        client.enqueue({"queue_name": _QUEUE, "workflow_name": "five", "app_version": "1"}, file)
    client.destroy()


def _direct(threads: int, jobs: int, file: str) -> None:
    _launch()
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(jobs):
            pool.submit(_durable_five, file)
    DBOS.destroy()


def main(what: str, *rest: str) -> int:
    """store JOBS STAMPS | tables | queue WORKERS STAMPS | direct THREADS JOBS STAMPS."""
    if what == "store":
        _store(int(rest[0]), rest[1])
    elif what == "direct":
        _direct(int(rest[0]), int(rest[1]), rest[2])
    else:
        _launch()
        DBOS.register_queue(_QUEUE, worker_concurrency=int(rest[0]), polling_interval_sec=0.1)
        signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
