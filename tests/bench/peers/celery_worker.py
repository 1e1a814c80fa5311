"""Celery: a chain of five tasks over Redis, acknowledged late; no result backend, because a chain needs none. Nothing of it is durable."""

import os
import sys

from celery import Celery, chain

from tests.bench.peers.stamps import STEPS, stamp

app = Celery("bench", broker=os.environ["REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    task_reject_on_worker_lost=True,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


def _step(number: int, file: str) -> None:
    stamp(file, number)


_task = app.task(name="step")(_step)


def main(jobs: str, file: str) -> int:
    """JOBS STAMPS: store the chains; `celery -A tests.bench.peers.celery_worker worker` works on them."""
    for _ in range(int(jobs)):
        chain(*(_task.si(number, file) for number in range(STEPS))).apply_async()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
