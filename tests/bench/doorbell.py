"""From the commit of an enqueue to the start of its first effect, through every process that the way leads over."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from select import select
from threading import Event, Thread
from time import monotonic_ns
from typing import Final
from uuid import uuid4

import redis
from sqlalchemy import text

from tests.bench.ground import Database, Ground, Teller, ask, daemon, ends
from tests.bench.table import Row, percentile, spread, times
from tests.waiting import until
from worker.domain import Secret
from worker.store import connect, requests

_WHAT: Final = "enqueue committed → first effect starts, idle worker, Redis doorbell"
_TARGET: Final = "p50 ≤ 10 ms, p99 ≤ 50 ms"
_TIMES: Final = 200
_WARM: Final = 20


def measure(ground: Ground, tell: Teller) -> list[Row]:
    """The daemon's way, beside the same hops with nothing around them."""
    if ground.redis is None:
        return [Row(_WHAT, "not measured: there is no redis-server here", target=_TARGET)]
    tell.begin(f"doorbell: {_TIMES} jobs, one after the other")
    with ground.database() as database:
        bare = _bare(database, ground.redis)
        ours = _ours(ground, database, tell)
    p50, p99 = percentile(ours, 50), percentile(ours, 99)
    return [
        Row(
            _WHAT,
            spread(ours, tail=99, digits=1),
            f"{spread(bare, digits=1)}: NOTIFY, LPUSH, BRPOP, UPDATE",
            times(p50, percentile(bare, 50)),
            _TARGET,
            met=p50 <= 10 and p99 <= 50,
        )
    ]


def _ours(ground: Ground, database: Database, tell: Teller) -> list[float]:
    """Milliseconds for each job."""
    took = []
    began = "SELECT (facts ->> 'at_ns')::bigint FROM worker.steps WHERE job_id = :job"
    with daemon(ground, database), ends(database) as end_of:
        for number in range(_WARM + _TIMES):
            with database.engine.connect() as connection:
                job, _ = requests.enqueue(connection, "bench.stamped", {"id": str(uuid4())})
                connection.commit()
                committed = monotonic_ns()
            end_of(job)
            took.append((ask(database, began, job=job) - committed) / 1e6)
            _pause()
            tell.step(number + 1, _WARM + _TIMES)
    return took[_WARM:]


_random: Final = Random(7)


def _pause() -> None:
    """Until the worker is idle again, and never in step with its own look-around."""
    Event().wait(_random.uniform(0.005, 0.02))


def _bare(database: Database, broker: Secret) -> list[float]:
    """Milliseconds for the same hops: a commit with NOTIFY, one who listens and pushes, one who pops and claims."""
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE public.bare_rings (id int PRIMARY KEY, claimed boolean NOT NULL DEFAULT false)"))
    arrived: dict[int, int] = {}
    took = []
    with _hops(database, broker, arrived):
        for number in range(_WARM + _TIMES):
            with database.engine.connect() as connection:
                connection.execute(text("INSERT INTO public.bare_rings VALUES (:n)"), {"n": number})
                connection.execute(text("SELECT pg_notify('bare', :n)"), {"n": str(number)})
                connection.commit()
                committed = monotonic_ns()
            until(lambda: number in arrived, what="the bare bell")  # noqa: B023
            took.append((arrived[number] - committed) / 1e6)
            _pause()
    return took[_WARM:]


@contextmanager
def _hops(database: Database, broker: Secret, arrived: dict[int, int]) -> Iterator[None]:
    stop = Event()
    listening = connect.open_raw(database.url, name="bare listen")
    claiming = connect.open_raw(database.url, name="bare claim")
    with redis.Redis.from_url(broker.reveal()) as pushing, redis.Redis.from_url(broker.reveal()) as popping:
        with listening.cursor() as cursor:
            cursor.execute("LISTEN bare")

        def listen() -> None:
            while not stop.is_set():
                select([listening], [], [], 0.2)
                listening.poll()
                while listening.notifies:
                    pushing.lpush("bare", json.dumps(listening.notifies.pop(0).payload))

        def pop() -> None:
            with claiming.cursor() as cursor:
                while not stop.is_set():
                    popped = popping.brpop(["bare"], timeout=1)
                    if popped:
                        number = int(json.loads(popped[1]))
                        cursor.execute("UPDATE public.bare_rings SET claimed = true WHERE id = %s", (number,))
                        arrived[number] = monotonic_ns()

        threads = [Thread(target=listen, name="bare listen"), Thread(target=pop, name="bare pop")]
        for thread in threads:
            thread.start()
        yield
        stop.set()
        for thread in threads:
            thread.join()
    listening.close()
    claiming.close()
