"""Services for the tests: real ones, started from the wheels. A missing one skips here and is an error in CI."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, text

from tests import rabbit as rabbits
from tests.rabbit import Rabbit
from worker import embedded
from worker.domain import Secret
from worker.store import connect
from worker.store.migrate import migrate


def missing(what: str) -> None:
    """Skip with one line, or fail where every service must be there."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is missing")


#: Bytes: databases of a few megabytes that are dropped again, and at most a gigabyte of log.
_ENOUGH = 4 * 1024**3


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A server of the tests' own: the address with a `{}` where the database's name goes."""
    folder = Path(tempfile.mkdtemp(prefix="molecule-worker-tests-", dir=_quick()))
    service = embedded.start_postgres(folder)
    address = service.url.reveal().replace("/postgres?", "/{}?")
    with _admin(address).connect() as connection:
        # A throw-away server: it need not survive the machine. Never do this to data that matters.
        connection.execute(text("ALTER SYSTEM SET fsync = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
        connection.execute(text("CREATE DATABASE template_for_tests"))
    template = connect.open_engine(Secret(address.format("template_for_tests")), name="tests")
    migrate(template)
    template.dispose()
    yield address
    service.stop()
    shutil.rmtree(folder, ignore_errors=True)


def _quick() -> str | None:
    """Memory where there is enough of it: each test has a database of its own, and a slow disk makes half a second of that."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > _ENOUGH:
        return str(memory)
    # As root below /var/lib, because the wheel widens the modes of every parent of its folder.
    return "/var/lib" if os.geteuid() == 0 else None


def _admin(address: str) -> Engine:
    url = address.format("postgres").replace("postgresql:", "postgresql+psycopg2:")
    return create_engine(url, isolation_level="AUTOCOMMIT", poolclass=None)


@dataclass(frozen=True)
class Database:
    """A migrated database that this test has for itself."""

    url: Secret
    engine: Engine


@pytest.fixture
def database(postgres: str) -> Iterator[Database]:
    """A fresh copy of the migrated template. At the end the engine's invariants must hold."""
    with fresh_database(postgres) as fresh:
        yield fresh


@contextmanager
def fresh_database(postgres: str) -> Iterator[Database]:
    """What `database` is, for a fixture that several tests share."""
    name = f"t_{uuid4().hex[:12]}"
    admin = _admin(postgres)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template_for_tests"))
    url = Secret(postgres.format(name))
    engine = connect.open_engine(url, name="tests", size=8)
    yield Database(url, engine)
    with engine.connect() as connection:
        violations = connection.execute(text("SELECT what, which FROM worker.violations")).all()
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()
    assert violations == []


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[Secret]:
    """An empty Redis of this test's own."""
    service = embedded.start_redis(tmp_path / "redis")
    if service is None:
        missing("redis-server")
        return
    yield service.url
    service.stop()


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rabbit]:
    """A RabbitMQ node of the tests' own; who kills it starts it again."""
    if rabbits.program() is None:
        missing("rabbitmq-server (make rabbitmq)")
    with rabbits.rabbit(tmp_path_factory.mktemp("rabbit")) as node:
        yield node
