"""What the forked processes are: a Celery worker, and the one that rings, receives and faces operators. Loaded before the fork."""

import os
import signal
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import structlog

from config import settings as environment
from worker import metrics, watch
from worker import singleton as once
from worker.admin import Answers, Barred, admin
from worker.app import app
from worker.assembly import compute_of, ground, receiver_address, secret
from worker.backends.docker import DockerCompute
from worker.backends.docker_shape import Shape
from worker.broker import Publisher
from worker.domain import Secret
from worker.errors import WorkerError
from worker.metered import MeteredPublisher
from worker.receiver import receiver as receiver_application
from worker.runtime import database_url, process_name
from worker.store import connect
from worker.store.bell import ListeningBell
from worker.store.cache import Cache
from worker.store.clock import DatabaseSlots

log = structlog.get_logger()


def jobs(place: str, folder: Path) -> int:
    """A real Celery worker with its thread pool; its start-up begins the runtime (worker/app.py). Its exit code.

    `place` is this process's place in the daemon, `folder` is where it counts.
    """
    metrics.begin(place, folder)
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


def singleton(*, parts: Collection[str], folder: Path, stop: Event) -> int:
    """Face operators and, as `parts` says, do what comes round, ring for due jobs and listen for workspaces, until SIGTERM."""
    # Through a pipe, because an Event that the interrupted thread itself waits for must not be set in a signal's handler.
    told, tell = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(tell, b"."))
    meters = metrics.begin("singleton", folder)
    own = environment.load()
    url = database_url(own)
    with ExitStack() as closing:
        # First, because it says what is wrong with all that follows.
        _face_operators(own, url, parts, folder, stop, closing)
        if "clock" in parts:
            sweeping = connect.open_engine(url, name=process_name("clock"), size=1)
            closing.callback(sweeping.dispose)
            clock_thread = once.start_clock(app.schedules, DatabaseSlots(sweeping), ground(own, sweeping), stop)
            closing.callback(clock_thread.join, 5.0)
        if "clock" in parts and own.broker_url is not None:
            publisher = Publisher(own)
            closing.callback(publisher.close)
            publish = MeteredPublisher(publisher, meters)
            relay = once.start_relay(lambda: ListeningBell(url, name=process_name("bell")), publish, stop)
            closing.callback(relay.join, 5.0)
        elif "clock" in parts:
            log.info("doorbells off", reason="no broker is configured", effect="jobs start up to a second later")
        if "receiver" in parts:
            _face_workspaces(own, url, stop, closing)
        os.read(told, 1)
        stop.set()
    return 0


def _face_operators(
    own: environment.Settings, url: Secret, parts: Collection[str], folder: Path, stop: Event, closing: ExitStack
) -> None:
    engine = connect.open_engine(url, name=process_name("admin"), size=2)
    closing.callback(engine.dispose)
    queue = f"{own.backend}.{own.docker_host}" if "jobs" in parts else None
    answers = Answers(watch.Readiness(engine, queue), watch.Scrape(engine, folder))
    barred: Barred = lambda _: False  # noqa: E731
    if own.backend == "docker":
        compute = DockerCompute(shape=Shape(installation="admin"), network=own.network)
        closing.callback(compute.close)
        barred = watch.Network(compute.found_subnets)
    if own.admin_addr.startswith("0.0.0.0:"):
        log.warning(
            "admin on all interfaces", effect="whoever reaches this host reads its numbers", hint="MOLECULE_WORKER_ADMIN_ADDR"
        )
    listeners = once.Listeners(admin(answers, barred), [lambda: own.admin_addr], stop, name="admin")
    listeners.start()
    closing.callback(listeners.join, 5.0)


def _face_workspaces(own: environment.Settings, url: Secret, stop: Event, closing: ExitStack) -> None:
    engine = connect.open_engine(url, name=process_name("receiver"), size=8)
    closing.callback(engine.dispose)
    cache = Cache(secret(own.redis_url))
    closing.callback(cache.close)
    compute = compute_of(own, engine)
    closing.callback(compute.close)
    application = receiver_application(engine, cache, saas=own.saas)
    listeners = once.Listeners(application, _addresses(own, compute), stop)
    listeners.start()
    closing.callback(listeners.join, 5.0)


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
