"""`up`, `run`, `migrate`: the daemon and what it stands on."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Final, NoReturn

import click

from worker.cli import context, words
from worker.errors import Misconfigured

if TYPE_CHECKING:
    from config.settings import Settings
    from worker.engine.kinds import Kind

_PARTS: Final = ("jobs", "receiver", "clock")
#: Seconds that a former daemon's last child may still hold the receiver's address.
_PORT_S: Final = 3.0
#: Settings that every terminal of a stack must have alike, besides what the stack itself decides.
_SHARED: Final = {
    "MOLECULE_BACKEND": "backend",
    "MOLECULE_WORKER_DOCKER_HOST_NAME": "docker_host",
    "MOLECULE_WORKER_NETWORK": "network",
    "MOLECULE_WORKER_RECEIVER_ADDR": "receiver_addr",
    "MOLECULE_WORKER_ADMIN_ADDR": "admin_addr",
    "PLATFORM_URL": "platform_url",
    "MOLECULE_IMAGE_REGISTRY": "image_registry",
    "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX": "template_repo_prefix",
    "MOLECULE_LOCAL_BUILD_CACHE": "build_cache",
}


@click.command()
def migrate() -> None:
    """Bring the schema to head and write the catalogue of job kinds. Running it again changes nothing."""
    context.log_to_stderr()
    bring_to_head(context.settings())
    words.say("schema and catalogue are at head")


@click.command()
@click.option("--only", type=click.Choice(_PARTS), multiple=True, help="Only this part; may be repeated.")
@click.option("--concurrency", type=click.IntRange(1, 256), help="Jobs that one process drives at once.")
@click.option("--queues", help="Comma-separated; default: this host's and the kinds' own.")
def run(*, only: tuple[str, ...], concurrency: int | None, queues: str | None) -> int:
    """Run the daemon on DATABASE_URL: worker processes, doorbells and the receiver.

    Without DATABASE_URL it joins the stack that `up` runs. It needs a migrated database: molecule-worker migrate.
    """
    if concurrency is not None:
        os.environ["MOLECULE_WORKER_SLOTS"] = str(concurrency)
    if queues:
        os.environ["MOLECULE_WORKER_QUEUES"] = queues
    own = context.settings()
    _refuse_unready(own)
    return supervise(own, only or _PARTS)


@click.command()
def up() -> int:
    """Start Postgres and Redis from their wheels, then the daemon; other terminals find it by its state folder.

    The folder is MOLECULE_WORKER_STATE_DIR. Ctrl-C ends everything; what is stored stays for the next time. Of the two, one that
    ends by itself is started again; when it does not stay, all ends with exit code 3.
    """
    from config import settings as environment
    from worker import stack, upkeep
    from worker.assembly import has_key, static_key

    own = context.settings_of_environment()
    if own.database_url is not None:
        raise Misconfigured("start stack: DATABASE_URL is set, so there is a database already", hint="molecule-worker run")
    os.environ.setdefault("MOLECULE_WORKER_LOG_FORMAT", "console" if sys.stderr.isatty() else "json")
    _set_up_logs(environment.load())
    with _ended_by_any_signal(), stack.reserved(own.state_dir):
        _refuse_taken(own)
        if has_key(own):
            static_key(own)  # refused before anything starts; one that is made waits until the database was asked
        shared = {name: str(value) for name, field in _SHARED.items() if (value := getattr(own, field)) is not None}
        with upkeep.start(own.state_dir, shared=shared, key_of=_key_of) as started, _undisturbed_end():
            os.environ.update(started.environment)
            if "REDIS_URL" not in started.environment:
                words.say("no redis-server here: doorbells are off, and jobs start up to a second later")
            ready = environment.load()
            bring_to_head(ready)
            words.say(f"the stack is up; its state is in {own.state_dir}")
            return supervise(ready, _PARTS, keep=started.keep)


def _key_of(found: "Mapping[str, str]") -> str:
    """The fingerprint of the key that this stack works with, made where there is none and nothing is sealed under another."""
    from config import settings as environment
    from worker.assembly import refuse_new_key, static_key
    from worker.store import connect

    own = environment.load({**os.environ, **found})
    engine = connect.open_engine(context.database_url(own), name="key", size=1)
    try:
        with connect.reached(), engine.connect() as connection:
            refuse_new_key(own, connection)
    finally:
        engine.dispose()
    return static_key(own).fingerprint()


def bring_to_head(own: "Settings") -> None:
    """Migrations, then the catalogue. Raises SchemaMismatch or Unreachable."""
    from worker.store import connect, in_use, kinds
    from worker.store.migrate import migrate as to_head

    engine = connect.open_engine(context.database_url(own), name="migrate", size=1)
    try:
        with connect.reached():
            engine.connect().close()
        to_head(engine)
        with engine.begin() as connection:
            kinds.write(connection, catalogue().values(), backend=own.backend, host=own.docker_host)
        in_use.mend(engine)
    finally:
        engine.dispose()


def catalogue() -> "Mapping[str, Kind]":
    """Every kind of job, by way of Celery's own imports."""
    from worker.app import app

    app.loader.import_default_modules()
    return app.kinds


def supervise(
    own: "Settings", parts: tuple[str, ...], *, pauses: Sequence[float] | None = None, keep: Callable[[], None] | None = None
) -> int:
    """Fork the processes and keep them alive until a signal, and with `keep` what they stand on.

    `pauses`: seconds before a process that died starts again.
    """
    from worker import daemons, meter_folder
    from worker.assembly import static_key
    from worker.broker import errors_of
    from worker.queues import served
    from worker.supervisor import PAUSES, Supervisor

    _set_up_logs(own)
    static_key(own)  # before anything starts: production without a usable key must not run for a moment
    served(own, catalogue().values())  # likewise: a queue that does not exist
    errors_of(own)  # and a broker's address that is none
    with meter_folder.reserved(own.state_dir) as folder:
        mains: dict[str, Callable[[], int]] = {}
        if "jobs" in parts:
            mains |= {place: partial(daemons.jobs, place, folder) for place in (f"jobs-{n}" for n in range(1, own.processes + 1))}
        # Whatever the parts, because only a process of this daemon can add up what its processes count.
        mains["singleton"] = partial(daemons.singleton, parts=parts, folder=folder, stop=Event())
        return Supervisor(mains, frozen_s=own.lease_s, pauses=pauses or PAUSES, keep=keep).run()


def _refuse_unready(own: "Settings") -> None:
    """Here and not in the children, because those would be started again and again."""
    from worker.assembly import refuse_new_key
    from worker.store import kinds, migrate

    engine = context.open_database(own)
    with engine.connect() as connection:
        migrate.refuse_other(connection)
        refuse_new_key(own, connection)
        stale = kinds.differing(connection, catalogue().values())
    engine.dispose()
    if stale:
        raise Misconfigured(f"compare catalogue: the database does not know {', '.join(stale)}", hint="molecule-worker migrate")


def _refuse_taken(own: "Settings") -> None:
    """A receiver that only stands by would leave every workspace of this stack waiting."""
    from worker import embedded, singleton

    if own.platform_url is not None:
        return  # workspaces do not come to us
    end = monotonic() + _PORT_S
    while (listener := singleton.bind(own.receiver_addr)) is None:
        if monotonic() >= end:
            raise Misconfigured(
                f"start receiver: {own.receiver_addr} is taken, or not an address of this machine",
                hint=f"set MOLECULE_WORKER_RECEIVER_ADDR, e.g. to 127.0.0.1:{embedded.free_port()}",
            )
        Event().wait(0.1)
    listener.close()


def _set_up_logs(own: "Settings") -> None:
    from config import logs

    logs.set_up(form=own.log_format, level=own.log_level)


@contextmanager
def _ended_by_any_signal() -> Iterator[None]:
    """Until the supervisor takes over, a SIGTERM or a closed terminal ends the stack in order, as Ctrl-C does."""
    from worker.supervisor import stop_signals

    def leave(number: int, _: object) -> NoReturn:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(words.DONE)

    before = {number: signal.signal(number, leave) for number in stop_signals()}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


@contextmanager
def _undisturbed_end() -> Iterator[None]:
    """From here on Postgres is being stopped: an impatient second Ctrl-C must not leave it running."""
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
