"""The composition root: settings in, live ports out, closed in reverse. Built once per process, after the fork."""

import os
import platform
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import structlog
from sqlalchemy import Engine

from config.settings import Settings
from worker import metrics, trace_context
from worker.domain import Secret
from worker.engine.drive import Journal, drive
from worker.engine.intake import Intake
from worker.engine.kinds import Kind
from worker.engine.lease import Lease
from worker.engine.walk import Claimed
from worker.errors import JournalLost, Misconfigured
from worker.metered import MeteredClaims, MeteredJournal, MeteredRegister
from worker.queues import host_queue, served
from worker.store import connect, requests
from worker.store import kinds as catalogue
from worker.store.jobs import Claims, Register
from worker.store.journal import Journal as DatabaseJournal

log = structlog.get_logger()

#: sysexits.h EX_TEMPFAIL: the supervisor starts a fresh process.
LOST = 75


def database_url(settings: Settings) -> Secret:
    """DATABASE_URL. Raises Misconfigured when it is not set."""
    if settings.database_url is None:
        raise Misconfigured(
            "read settings: DATABASE_URL is not set", hint="set it, or start the embedded stack with `molecule-worker up`"
        )
    return Secret(settings.database_url.get_secret_value())


def host_name() -> str:
    """The machine's own name: what `drain` is asked for."""
    return platform.node() or socket.gethostname()


def process_name(role: str) -> str:
    """Who this process is, for people: host, role, pid."""
    return f"{role}@{host_name()}:{os.getpid()}"


class Reach(Protocol):
    """What the steps of a process can reach; the engine only asks which queues that is good for."""

    def queues(self) -> Sequence[str]:
        """Queues whose jobs this process can do right now."""
        ...


#: Builds the world of a process: settings, its pool, its identity, and where to leave what must be closed.
Assemble = Callable[[Settings, Engine, int, ExitStack], Reach]


class Runtime:
    """What a worker process owns. `answer` is the doorbell, everything else runs by itself."""

    def __init__(
        self,
        engine: Engine,
        world: Reach,
        kinds: Mapping[str, Kind],
        lease: Lease,
        intake: Intake,
        closing: ExitStack,
    ) -> None:
        self._engine = engine
        self._world = world
        self._kinds = kinds
        self._lease = lease
        self._intake = intake
        self._closing = closing

    @classmethod
    def start(
        cls,
        settings: Settings,
        kinds: Mapping[str, Kind],
        assemble: Assemble,
        *,
        journal_of: Callable[[Journal], Journal] = lambda journal: journal,
        leave: Callable[[], None] = lambda: os._exit(LOST),
        answer_s: float = 30.0,
    ) -> "Runtime":
        """Open connections, take an identity, begin to work. Raises Misconfigured or Unreachable.

        `answer_s`: seconds until a database that neither answers nor hangs up counts as lost.
        """
        url, name = database_url(settings), process_name("jobs")
        with ExitStack() as opened:
            engine = connect.open_engine(url, name=name, size=8)
            opened.callback(engine.dispose)
            with connect.reached(), engine.connect() as connection:
                stale = catalogue.differing(connection, kinds.values())
            if stale:
                raise Misconfigured(
                    f"compare catalogue: the database does not know {', '.join(stale)}", hint="molecule-worker migrate"
                )
            wanted = served(settings, kinds.values())
            meters = metrics.own()
            kinds = _followed(kinds, settings, name, opened)
            knows = {kind.name: kind.machine.names for kind in kinds.values()}
            register = Register(url, name=name, pid=os.getpid(), lease_s=settings.lease_s, host=host_name(), knows=knows)
            claims = Claims(url, process_id=register.process_id, name=name)
            opened.callback(claims.close)

            def run(job: Claimed) -> None:
                with _told_apart(job, traced=settings.otlp_endpoint is not None):
                    after = _drive_or_leave(job, kinds, world, MeteredJournal(journal, job, meters), lease, lost)
                if after is not None:
                    intake.expect(after)

            def lost(cause: Exception) -> None:
                _leave_for(cause, lease, leave)

            def queues() -> list[str]:
                away = {host_queue(settings)} - set(world.queues())
                return [queue for queue in wanted if queue not in away]

            metered = MeteredClaims(claims, meters)
            intake = Intake(metered, run, queues, slots=settings.slots, poll_s=settings.poll_s, on_lost=lost)
            lease = Lease(
                MeteredRegister(register, meters, length_s=settings.lease_s),
                settings.lease_s,
                on_lost=leave,
                on_reaped=intake.wake,
                driving=intake.driving,
                stuck=lambda: "a claim was not answered in time" if claims.overdue(answer_s) else None,
            )
            opened.callback(lease.close)
            # Before the world, because a backend that hangs may hold its assembly up for longer than a lease.
            lease.start()
            world = assemble(settings, engine, register.process_id, opened)
            own = DatabaseJournal(url, engine, name=name, answer_s=answer_s)
            journal = journal_of(own)
            opened.callback(own.close)
            opened.callback(lease.close)  # again, because what is opened last is closed first; a second close does nothing
            intake.start()
            log.info("ready", process=register.process_id, queues=queues(), slots=settings.slots)
            return cls(engine, world, kinds, lease, intake, opened.pop_all())

    def answer(self, job_id: str) -> bool:
        """Drive this job in the caller's thread if it is due and free; whether it was."""
        return self._intake.answer(job_id)

    def enqueue(self, kind: Kind, args: Mapping[str, Any], *, requested_by: str) -> str:
        """Store a job; its id."""
        with self._engine.begin() as connection:
            return requests.enqueue(connection, kind.name, args, requested_by=requested_by)[0]

    def drain(self) -> None:
        """First stop claiming; long effects come to their boundary, and what runs reaches its commit."""
        self._intake.drain()
        self._lease.drain()

    def close(self) -> None:
        """Wait for what runs, then give everything back in reverse order."""
        self.drain()
        if not self._intake.close(within_s=60.0):
            log.warning("left with work in progress", reason="it did not reach a boundary in 60 s; another process goes on")
        self._closing.close()


def _followed(kinds: Mapping[str, Kind], settings: Settings, name: str, opened: ExitStack) -> Mapping[str, Kind]:
    """The kinds themselves, or with a span around each effect where spans are sent somewhere."""
    if settings.otlp_endpoint is None:
        return kinds
    from worker.tracing import Tracing  # noqa: PLC0415  because the SDK costs 4 MiB in each process

    tracing = Tracing(process=name, collector=settings.otlp_endpoint.get_secret_value())
    opened.callback(tracing.close)
    return tracing.follow(kinds)


@contextmanager
def _told_apart(job: Claimed, *, traced: bool) -> Iterator[None]:
    """What the job's steps enqueue continues its trace, and what they log names it, when there is one."""
    with trace_context.carrying(job.id, job.traceparent, job.age) as origin:
        if not traced and origin.parent is None:
            yield
            return
        # Without spans of our own the enqueuer's trace is the only one, however long ago it was.
        trace = origin.trace if traced or origin.parent is None else origin.parent.trace_id
        with structlog.contextvars.bound_contextvars(trace_id=f"{trace:032x}"):
            yield


def _drive_or_leave(
    job: Claimed, kinds: Mapping[str, Kind], world: Reach, journal: Journal, lease: Lease, lost: Callable[[Exception], None]
) -> float | None:
    """The outermost frame of a job: whatever escapes the drive leaves a row that says `running`, so the process must go.

    Answers what the drive does: in how many seconds to look again.
    """
    try:
        kind = kinds.get(job.kind)
        return drive(job, kind.machine if kind else None, world, journal, lease)
    except JournalLost as error:
        log.error("journal lost", job=job.id, reason=error.message)  # noqa: TRY400  because its cause is the network
        lost(error)
    except Exception as error:
        log.exception("drive broke", job=job.id)
        lost(error)
    return None


def _leave_for(cause: Exception, lease: Lease, leave: Callable[[], None]) -> None:
    """Say why, if no step is to blame, and then go. A fault of our own is not said: it would meet the same job again and again."""
    try:
        if isinstance(cause, JournalLost):
            lease.resign()
    finally:
        leave()
