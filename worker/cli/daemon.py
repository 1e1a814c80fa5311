"""`up`, `run`, `migrate`: the daemon and what it stands on."""

import os
import sys
from collections.abc import Callable, Mapping
from threading import Event
from typing import TYPE_CHECKING

import click

from config import settings as environment
from config.settings import Settings
from worker import stack
from worker.cli import context, words
from worker.errors import Misconfigured

if TYPE_CHECKING:
    from worker.engine.kinds import Kind

_PARTS = ("jobs", "receiver", "clock")


@click.command()
def migrate() -> None:
    """Bring the schema to head and write the catalogue of job kinds."""
    bring_to_head(context.settings())
    words.say("schema and catalogue are at head")


@click.command()
@click.option("--only", type=click.Choice(_PARTS), multiple=True, help="Only this part; may be repeated.")
@click.option("--concurrency", type=click.IntRange(1, 256), help="Jobs that one process drives at once.")
@click.option("--queues", help="Comma-separated; default: this host's own.")
def run(*, only: tuple[str, ...], concurrency: int | None, queues: str | None) -> int:
    """Run the daemon on DATABASE_URL: worker processes, doorbells and the receiver."""
    if concurrency is not None:
        os.environ["MOLECULE_WORKER_SLOTS"] = str(concurrency)
    if queues:
        os.environ["MOLECULE_WORKER_QUEUES"] = queues
    own = context.settings()
    context.open_database(own).dispose()
    return supervise(own, only or _PARTS)


@click.command()
def up() -> int:
    """Start Postgres and Redis from their wheels, then the daemon; other terminals find it by its state folder."""
    own = context.settings_of_environment()
    if own.database_url is not None:
        raise Misconfigured("start stack: DATABASE_URL is set, so there is a database already", hint="molecule-worker run")
    own.state_dir.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MOLECULE_WORKER_LOG_FORMAT", "console" if sys.stderr.isatty() else "json")
    with stack.start(own.state_dir, backend=own.backend) as found:
        os.environ.update(found)
        if "REDIS_URL" not in found:
            words.say("no redis-server here: doorbells are off, and jobs start up to a second later")
        ready = environment.load()
        bring_to_head(ready)
        words.say(f"the stack is up; its state is in {own.state_dir}")
        return supervise(ready, _PARTS)


def bring_to_head(own: Settings) -> None:
    """Migrations, then the catalogue. Raises SchemaMismatch or Unreachable."""
    from sqlalchemy.exc import OperationalError  # noqa: PLC0415  because `up --help` must not load it

    from worker.errors import Unreachable  # noqa: PLC0415
    from worker.runtime import database_url  # noqa: PLC0415
    from worker.store import connect, kinds  # noqa: PLC0415
    from worker.store.migrate import migrate as to_head  # noqa: PLC0415

    engine = connect.open_engine(database_url(own), name="migrate", size=1)
    try:
        to_head(engine)
        with engine.begin() as connection:
            kinds.write(connection, catalogue().values(), backend=own.backend, host=own.docker_host)
    except OperationalError as error:
        raise Unreachable("migrate schema: the database did not answer", hint=context.HINT) from error
    finally:
        engine.dispose()


def catalogue() -> "Mapping[str, Kind]":
    """Every kind of job, by way of Celery's own imports."""
    from worker.app import app  # noqa: PLC0415  because only the daemon and `migrate` need Celery

    app.loader.import_default_modules()
    return app.kinds


def supervise(own: Settings, parts: tuple[str, ...]) -> int:
    """Fork the processes and keep them alive until a signal."""
    from config import logs  # noqa: PLC0415
    from worker import daemons  # noqa: PLC0415  because it loads everything the children share
    from worker.assembly import static_key  # noqa: PLC0415
    from worker.supervisor import Supervisor  # noqa: PLC0415

    logs.set_up(form=own.log_format, level=own.log_level)
    static_key(own)  # before anything starts: production without a usable key must not run for a moment
    catalogue()
    mains: dict[str, Callable[[], int]] = {}
    if "jobs" in parts:
        mains |= {f"jobs-{n}": daemons.jobs for n in range(1, own.processes + 1)}
    if {"receiver", "clock"} & set(parts):
        mains["singleton"] = lambda: daemons.singleton(receiver="receiver" in parts, clock="clock" in parts, stop=Event())
    return Supervisor(mains, frozen_s=own.lease_s).run()
