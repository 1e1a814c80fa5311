"""What every command needs: the settings, of a running stack where none are set, and the database behind them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser

from pydantic import ValidationError
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from config import settings as environment
from config.settings import Settings
from worker import stack
from worker.domain import Secret, parse_id
from worker.errors import Misconfigured, Refused, Unreachable
from worker.store import connect

HINT = "start Postgres, set DATABASE_URL, or run `molecule-worker up` in another terminal"


def settings() -> Settings:
    """This process's settings. Without DATABASE_URL those of the stack that `up` runs are taken. Raises Misconfigured."""
    own = settings_of_environment()
    found = stack.running(own.state_dir) if own.database_url is None else {}
    return environment.load({**found, **{name: value for name, value in os.environ.items() if value}}) if found else own


def settings_of_environment() -> Settings:
    """The settings of the environment alone. Raises Misconfigured."""
    try:
        return environment.load()
    except environment.UnknownSetting as error:
        raise Misconfigured(str(error)) from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise Misconfigured(f"read settings: {first['loc'][0]}: {first['msg'].lower()}") from None


def open_database(own: Settings) -> Engine:
    """The pool of a command. Raises Unreachable when nothing answers, Misconfigured when the schema is not there."""
    if own.database_url is None:
        raise Unreachable("open database: DATABASE_URL is not set and no embedded stack runs", hint=HINT)
    engine = connect.open_engine(Secret(own.database_url.get_secret_value()), name="cli", size=2)
    try:
        with engine.connect() as connection:
            ready = connection.execute(text("SELECT to_regclass('worker.jobs')")).scalar()
    except OperationalError as error:
        raise Unreachable("open database: it did not answer", hint=HINT) from error
    if ready is None:
        raise Misconfigured("open database: the worker's schema is not there", hint="molecule-worker migrate")
    return engine


@contextmanager
def reading() -> Iterator[Connection]:
    """A connection for questions."""
    engine = open_database(settings())
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def writing() -> Iterator[Connection]:
    """One transaction: all of it or nothing."""
    engine = open_database(settings())
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def requested_by() -> str:
    """Who asks, for the record."""
    try:
        return f"cli:{getuser()}"
    except (KeyError, OSError):  # a container's uid may have no name
        return f"cli:{os.getuid()}"


def checked_id(given: str, what: str) -> str:
    """A UUID. Raises Refused, and does not repeat what was given."""
    try:
        return parse_id(given)
    except ValueError:
        raise Refused(f"read {what} id: it is not a UUID", hint=f"molecule-worker {what}s list") from None
