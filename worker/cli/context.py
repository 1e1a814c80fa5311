"""What every command needs: the settings, of a running stack where none are set, and the database behind them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from typing import TYPE_CHECKING

from worker.domain import Secret, parse_id
from worker.errors import Misconfigured, Refused, Unreachable

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from config.settings import Settings
    from worker.crypto.keyring import StaticKey

HINT = "start Postgres, set DATABASE_URL, or run `molecule-worker up` in another terminal"


def settings() -> "Settings":
    """This process's settings. Without DATABASE_URL those of the stack that `up` runs are taken. Raises Misconfigured."""
    from worker import stack

    own = settings_of_environment()
    if own.database_url is not None:
        return own
    # What is set here wins over what `up` found there.
    for name, value in stack.running(own.state_dir).items():
        if not os.environ.get(name):
            os.environ[name] = value
    return settings_of_environment()


def settings_of_environment() -> "Settings":
    """The settings of the environment alone. Raises Misconfigured."""
    from pydantic import ValidationError

    from config import settings as environment

    try:
        return environment.load()
    except environment.BadSetting as error:
        raise Misconfigured(str(error), hint="correct or unset it") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        name = str(first["loc"][0])
        raise Misconfigured(
            f"read settings: {name}: {_lowered(first['msg'])}", hint=environment.known_names().get(name, "")
        ) from None


def open_database(own: "Settings", *, size: int = 2) -> "Engine":
    """The pool of a command. Raises Unreachable when nothing answers, Misconfigured when the schema is not this release's."""
    from worker.store import connect, migrate

    engine = connect.open_engine(database_url(own), name="cli", size=size)
    try:
        with connect.reached(), engine.connect() as connection:
            migrate.refuse_other(connection)
    except Misconfigured:
        engine.dispose()
        raise
    return engine


def database_url(own: "Settings") -> Secret:
    """Where Postgres is. Raises Unreachable when nobody said."""
    if own.database_url is None:
        raise Unreachable("open database: DATABASE_URL is not set and no embedded stack runs", hint=HINT)
    return Secret(own.database_url.get_secret_value())


@contextmanager
def reading() -> "Iterator[Connection]":
    """A connection for questions."""
    engine = open_database(settings())
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def writing() -> "Iterator[Connection]":
    """One transaction: all of it or nothing. The jobs that it starts belong to the trace of TRACEPARENT, if there is one."""
    from worker import trace_context

    own = settings()
    trace_context.inherit(own.traceparent)
    engine = open_database(own)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def load_key(own: "Settings") -> "StaticKey":
    """This installation's key. Raises Misconfigured, also where the running stack works with another one."""
    from worker import stack
    from worker.crypto import keyring

    log_to_stderr()
    given = own.secrets_encryption_key
    key = keyring.load(Secret(given.get_secret_value()) if given else None, own.production, own.state_dir)
    theirs = stack.key_of_running(own.state_dir)
    if theirs not in (None, key.fingerprint()):
        raise Misconfigured(
            f"load key: the running stack works with another one ({theirs}), and could not open what this one seals",
            hint="set SECRETS_ENCRYPTION_KEY to the key that `up` was started with",
        )
    return key


def log_to_stderr() -> None:
    """Before anything of ours logs, because stdout is for data; not for every command, because it costs a tenth of a second."""
    from config import logs

    logs.set_up(form="console", level="WARNING")


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


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
