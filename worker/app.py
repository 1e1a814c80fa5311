"""The Celery app: one named task per kind of job, so that routing, `celery inspect` and Flower mean something.

A message is a doorbell and carries one id. The job's row says everything else, so a message that is lost, doubled or
late changes nothing but the moment at which somebody looks.
"""

import os
import signal
import warnings
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from celery import Celery, signals
from celery.app.amqp import AMQP, Queues
from celery.exceptions import CPendingDeprecationWarning
from celery.platforms import SecurityWarning  # type: ignore[attr-defined]  # the stubs lack it
from celery.worker import state
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from kombu.utils.objects import cached_property

from config import celery as knobs
from config import logs
from worker import stack
from worker.assembly import assemble
from worker.engine.clock import Schedule
from worker.engine.kinds import Kind
from worker.errors import WorkerError
from worker.queues import served
from worker.runtime import LOST, Runtime

log = structlog.get_logger()

# Celery warns root of pickled messages, which this app refuses (config/celery.py); as root it is run in containers.
warnings.filterwarnings("ignore", category=SecurityWarning)
# And of a default that may change one day, each time a broker is lost; config/celery.py sets it.
warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)

_EXCHANGE = Exchange("molecule-worker", type="direct", durable=True, delivery_mode="transient")


def queue_named(name: str) -> Queue:
    """The declaration of a queue, the same for who rings and who listens; also of another host's, which is not in our list."""
    return Queue(name, _EXCHANGE, routing_key=name, durable=True)


class Doorbells(AMQP):
    """Celery's table of queues, made of the catalogue and of this host."""

    @cached_property
    def queues(self) -> Queues:
        """Read when it is first needed and not from the settings, because the catalogue is imported after them."""
        self.app.loader.import_default_modules()
        return self.Queues([queue_named(name) for name in served(stack.settings(), app.kinds.values())])


class WorkerApp(Celery):
    """Celery plus the catalogue of kinds and, in a worker process, its runtime."""

    amqp_cls = "worker.app:Doorbells"

    kinds: dict[str, Kind]
    schedules: Sequence[Schedule]
    runtime: Runtime | None
    #: the process whose runtime it is: in a fork of it every connection would be shared
    home: int
    #: a parent of ours decides when this process stops
    supervised: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kinds = {}
        self.schedules = ()
        self.runtime = None
        self.home = 0
        self.supervised = False

    def add_kind(self, kind: Kind) -> None:
        """Put a kind into the catalogue and register its task under the kind's own name."""
        self.kinds[kind.name] = kind
        self.task(name=kind.name, bind=True, ignore_result=True)(_ring)


def _ring(self: Any, subject_id: str | None = None, *, job: str | None = None) -> None:
    """Look at job `job` now. A producer's own message names the subject instead: then the job is stored first."""
    own: WorkerApp = self.app
    runtime, kind = own.runtime, own.kinds[self.name]
    if runtime is None or own.home != os.getpid():
        log.warning("doorbell without a runtime", kind=self.name)
        return
    ident = job if job is not None else subject_id
    try:
        canonical = str(UUID(str(ident)))
    except ValueError:
        log.warning("doorbell refused: not a UUID", kind=self.name)
        return
    if job is None:
        canonical = runtime.enqueue(kind, {kind.subject_arg: canonical}, requested_by="celery")
    runtime.answer(canonical)


app = WorkerApp("molecule-worker")
# Evaluated on first use and not at import, because settings are read after the fork.
app.add_defaults(lambda: knobs.conf(stack.settings()))


def begin(**seams: Any) -> None:
    """Start this process's runtime; `seams` are those of `Runtime.start`.

    Celery logs what a signal's receiver raises and goes on: a worker without a runtime would live for ever and do nothing.
    So a start that failed ends the process, and the parent tries again.
    """
    app.loader.import_default_modules()
    app.home = os.getpid()
    try:
        app.runtime = Runtime.start(stack.settings(), app.kinds, assemble, **seams)
    except WorkerError as error:
        log.error("start failed", reason=error.message, hint=error.hint)  # noqa: TRY400  because the reason says it all
        raise SystemExit(LOST) from error
    except Exception as error:
        log.exception("start failed")
        raise SystemExit(LOST) from error


@signals.setup_logging.connect
def _set_up_logs(**_: object) -> None:
    """Instead of Celery's own: its level and form are not our settings, and it redacts nothing."""
    own = stack.settings()
    logs.set_up(form=own.log_format, level=own.log_level)


@signals.worker_init.connect
def _start(**_: object) -> None:
    _set_up_logs()  # here as well, because a worker that is started by itself comes here first
    begin()


@signals.worker_ready.connect
def _obey_the_parent(**_: object) -> None:
    """Replace Celery's answers to signals: it prints into the log, and on a hang-up starts the command line anew."""
    if app.supervised:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _leave)


def _leave(*_: object) -> None:
    _drain()
    state.should_stop = 0  # type: ignore[assignment]  # the stubs know its first value only


@signals.worker_shutting_down.connect
def _drain(**_: object) -> None:
    # Once, because a second signal inside this handler would wait for a lock that the first one holds: who signals
    # a whole group (systemd does) sends one, and the parent passes on another.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if app.runtime is not None:
        app.runtime.drain()


@signals.worker_shutdown.connect
def _stop(**_: object) -> None:
    if app.runtime is not None:
        app.runtime.close()


def broker_errors(url: str) -> tuple[type[BaseException], ...]:
    """What the client of the broker at `url` raises when it is away, full, or refuses: each transport has its own.

    Raises KeyError, ValueError or ImportError for an address that is none.
    """
    connection: Any = app.connection_for_write(url)
    return (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors)
