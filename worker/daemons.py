"""What the forked processes are: a Celery worker, and the one that rings and receives. Loaded before the fork."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from threading import Event

import structlog

from config import settings as environment
from worker import singleton as once
from worker.app import app
from worker.assembly import compute_of, receiver_address, secret
from worker.backends.docker import DockerCompute
from worker.broker import Publisher
from worker.errors import WorkerError
from worker.receiver import receiver as receiver_application
from worker.runtime import database_url, process_name
from worker.store import connect
from worker.store.bell import ListeningBell
from worker.store.cache import Cache

log = structlog.get_logger()


def jobs() -> int:
    """A real Celery worker with its thread pool; its start-up begins the runtime (worker/app.py). Its exit code."""
    own = environment.load()
    app.supervised = True
    worker = app.Worker(
        hostname=f"{process_name('jobs')}",
        pool="threads",
        concurrency=own.slots,
        loglevel=own.log_level,
        quiet=True,
        # Few, and for Flower: it shows a worker as offline that sends none.
        heartbeat_interval=10.0,
        without_mingle=True,
        without_gossip=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def singleton(*, receiver: bool, clock: bool, stop: Event) -> int:
    """Ring for due jobs, and listen for workspaces, until SIGTERM."""
    # Through a pipe, because an Event that the interrupted thread itself waits for must not be set in a signal's handler.
    told, tell = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(tell, b"."))
    own = environment.load()
    url = database_url(own)
    with ExitStack() as closing:
        if clock and own.broker_url is not None:
            publisher = Publisher(own)
            closing.callback(publisher.close)
            relay = once.start_relay(lambda: ListeningBell(url, name=process_name("bell")), publisher, stop)
            closing.callback(relay.join, 5.0)
        elif clock:
            log.info("doorbells off", reason="no broker is configured", effect="jobs start up to a second later")
        if receiver:
            engine = connect.open_engine(url, name=process_name("receiver"), size=8)
            closing.callback(engine.dispose)
            cache = Cache(secret(own.redis_url))
            closing.callback(cache.close)
            compute = compute_of(own, engine)
            closing.callback(compute.close)
            listeners = once.Listeners(
                receiver_application(engine, cache, saas=own.molecule_org_id is not None), _addresses(own, compute), stop
            )
            listeners.start()
            closing.callback(listeners.join, 5.0)
        os.read(told, 1)
        stop.set()
    return 0


def _addresses(own: environment.Settings, compute: object) -> list[Callable[[], str | None]]:
    """Loopback, and on Docker the network's gateway; never all interfaces."""
    addresses: list[Callable[[], str | None]] = [lambda: own.receiver_addr]
    if isinstance(compute, DockerCompute) and own.platform_url is None:

        def gateway() -> str | None:
            try:
                return receiver_address(own, compute)
            except WorkerError:
                return None  # no engine yet: looked for again

        addresses.append(gateway)
    return addresses
