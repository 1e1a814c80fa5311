"""Connections to Postgres: a small SQLAlchemy pool for what is not hot, held psycopg2 connections for what is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import TransactionRollbackError
from psycopg2.extensions import connection as RawConnection  # noqa: N812  because it is a class
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from worker.domain import Secret
from worker.errors import Misconfigured, Unreachable

#: A host that vanished must not keep our locks: libpq notices within about 15 s. Milliseconds and seconds as libpq wants them.
_KEEPALIVE = {
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "connect_timeout": "5",
}
#: The same from the server's side, and the isolation that the engine's functions are written for: each of their statements
#: must see what others committed meanwhile. Milliseconds.
_SESSION = (
    "-c idle_in_transaction_session_timeout=60000 -c client_connection_check_interval=5000 "
    "-c default_transaction_isolation=read\\ committed"
)
_DEFAULTS = {**_KEEPALIVE, "options": _SESSION}

#: Part of libpq's or the server's own text → (reason, hint). The texts themselves name users and hosts and are not passed on;
#: one in another language falls through to the last row.
_MEANINGS: Final = (
    ("password authentication failed", "the server refuses this user and password", "mend the user and password in DATABASE_URL"),
    ("no password supplied", "the server wants a password", "put it into DATABASE_URL"),
    ("no pg_hba.conf entry", "the server refuses this user from here", "let it in with a line in the server's pg_hba.conf"),
    ("does not exist", "the server has no such database or user", "create it, or mend DATABASE_URL"),
    ("could not translate host name", "its host name is not known", "mend the host in DATABASE_URL"),
    # Before the row below, because a server that was killed leaves its socket behind; the embedded one listens on nothing else.
    (
        "on that socket",
        "nothing listens at its socket",
        "start Postgres, or mend DATABASE_URL; `up` starts its own again by itself",
    ),
    ("connection refused", "nothing listens at its host and port", "start Postgres, or mend DATABASE_URL"),
    ("timeout expired", "it did not answer in time", "is the host up, and does a firewall let us through?"),
    ("too many clients", "it has no connection to spare", "raise max_connections, or run fewer workers"),
    ("remaining connection slots", "it has no connection to spare", "raise max_connections, or run fewer workers"),
    ("starting up", "it is starting up", "try again in a moment"),
    ("", "it did not answer", "is Postgres running, and is DATABASE_URL right?"),
)


@contextmanager
def reached() -> Iterator[None]:
    """Open the first connection within this. Raises Unreachable, which says why and shows no part of the address."""
    try:
        yield
    except OperationalError as error:
        said = str(error.orig).lower()
        reason, hint = next((reason, hint) for mark, reason, hint in _MEANINGS if mark in said)
        raise Unreachable(f"open database: {reason}", hint=hint) from error


#: The server itself answered that this statement was not to be, now or in this way: it is rolled back, and the session lives.
_ANSWERED: Final = (errors.QueryCanceled, errors.LockNotAvailable, TransactionRollbackError)


def lost(error: BaseException) -> bool:
    """Whether the database went away rather than refused, for an error of the driver or of SQLAlchemy.

    A statement whose connection is cut while it runs has no SQLSTATE, and psycopg2 raises its bare DatabaseError for it.
    A server that may only be read has gone away, too: it is a standby now, and our address leads elsewhere or soon will.
    """
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, _ANSWERED):
        return False
    if isinstance(cause, psycopg2.OperationalError | psycopg2.InterfaceError | errors.ReadOnlySqlTransaction):
        return True
    return type(cause) is psycopg2.DatabaseError and cause.pgcode is None


def answered(error: BaseException) -> bool:
    """Whether the server rolled the statement back by its own decision (a timeout, a lock, a deadlock), which may pass."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(cause, _ANSWERED)


_FORM = "postgresql://USER:PASSWORD@HOST:5432/NAME"  # pragma: allowlist secret


def parse(url: Secret) -> URL:
    """The address with our driver. Raises Misconfigured without showing the URL, which holds a password."""
    try:
        parsed = make_url(url.reveal())
    except (ArgumentError, ValueError) as error:
        raise Misconfigured("read DATABASE_URL: it is not a database URL", hint=_FORM) from error
    if not parsed.drivername.startswith("postgres"):
        raise Misconfigured("read DATABASE_URL: it is not a Postgres URL", hint=_FORM)
    return parsed.set(drivername="postgresql+psycopg2")


def open_engine(url: Secret, *, name: str, size: int = 4) -> Engine:
    """A pool that grows by need, checks what it hands out, and shows no parameter in any error."""
    engine = create_engine(
        parse(url),
        pool_size=size,
        max_overflow=size,
        pool_pre_ping=True,
        pool_timeout=10,
        hide_parameters=True,
        connect_args={**_DEFAULTS, "application_name": f"molecule-worker {name}"[:63]},
    )
    event.listen(engine, "handle_error", _drop_session)
    return engine


def _drop_session(context: ExceptionContext) -> None:
    """A setting of the database or the role is a session's for life, so one that suffers from it must not go back to the pool."""
    if isinstance(context.original_exception, errors.QueryCanceled | errors.ReadOnlySqlTransaction):
        context.is_disconnect = True


def open_raw(url: Secret, *, name: str) -> RawConnection:
    """One autocommit connection, held by one thread. Raises Unreachable."""
    address = parse(url)
    arguments = {**_DEFAULTS, **address.translate_connect_args(username="user", database="dbname"), **address.query}
    try:
        connection: RawConnection = psycopg2.connect(**arguments, application_name=f"molecule-worker {name}"[:63])
    except psycopg2.OperationalError as error:
        raise Unreachable("open database: no answer", hint="is Postgres running, and is DATABASE_URL right?") from error
    connection.autocommit = True
    return connection
