"""Procrastinate: five jobs in a row, each of which defers the next one."""

import asyncio
import os
import sys
from typing import Any

import procrastinate

from tests.bench.peers.stamps import STEPS, stamp


def _app() -> Any:
    """Connections for as many jobs as run at once."""
    return procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["DATABASE_URL"], min_size=2, max_size=24))


_application = _app()


async def _async_step(number: int, file: str) -> None:
    stamp(file, number)
    if number + 1 < STEPS:
        await _durable_async.defer_async(number=number + 1, file=file)


def _sync_step(number: int, file: str) -> None:
    stamp(file, number)
    if number + 1 < STEPS:
        _durable_sync.defer(number=number + 1, file=file)


_durable_async = _application.task(name="async", queue="async")(_async_step)
_durable_sync = _application.task(name="sync", queue="sync")(_sync_step)


async def _store(form: str, jobs: int, file: str) -> None:
    async with _application.open_async():
        await _application.schema_manager.apply_schema_async()
        task = _durable_async if form == "async" else _durable_sync
        await task.batch_defer_async(*({"number": 0, "file": file} for _ in range(jobs)))


async def _work(form: str, concurrency: int) -> None:
    async with _application.open_async():
        await _application.run_worker_async(queues=[form], concurrency=concurrency)


def main(what: str, form: str, number: str, file: str = "") -> int:
    """store FORM JOBS STAMPS | work FORM CONCURRENCY."""
    asyncio.run(_store(form, int(number), file) if what == "store" else _work(form, int(number)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
