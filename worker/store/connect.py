"""Connections to Postgres: a small SQLAlchemy pool for what is not hot, held psycopg2 connections for what is."""

import psycopg2
from psycopg2.extensions import connection as RawConnection  # noqa: N812  because it is a class
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

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


def parse(url: Secret) -> URL:
    """The address with our driver. Raises Misconfigured without showing the URL, which holds a password."""
    try:
        parsed = make_url(url.reveal())
    except ArgumentError as error:
        raise Misconfigured(
            "read DATABASE_URL: it is not a database URL", hint="postgresql://user:password@host:5432/name"
        ) from error
    if not parsed.drivername.startswith("postgres"):
        raise Misconfigured("read DATABASE_URL: it is not a Postgres URL", hint="postgresql://user:password@host:5432/name")
    return parsed.set(drivername="postgresql+psycopg2")


def open_engine(url: Secret, *, name: str, size: int = 4) -> Engine:
    """A pool that grows by need, checks what it hands out, and shows no parameter in any error."""
    return create_engine(
        parse(url),
        pool_size=size,
        max_overflow=size,
        pool_pre_ping=True,
        pool_timeout=10,
        hide_parameters=True,
        connect_args={**_KEEPALIVE, "application_name": f"molecule-worker {name}"[:63]},
    )


def open_raw(url: Secret, *, name: str) -> RawConnection:
    """One autocommit connection, held by one thread. Raises Unreachable."""
    address = parse(url)
    arguments = {**_KEEPALIVE, **address.translate_connect_args(username="user", database="dbname"), **address.query}
    try:
        connection: RawConnection = psycopg2.connect(**arguments, application_name=f"molecule-worker {name}"[:63])
    except psycopg2.OperationalError as error:
        raise Unreachable("open database: no answer", hint="is Postgres running, and is DATABASE_URL right?") from error
    connection.autocommit = True
    return connection
