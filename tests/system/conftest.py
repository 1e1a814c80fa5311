"""Daemons that several tests share, because each costs seconds to start."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import Database, fresh_database
from tests.system.house import House, house, settings_around


@pytest.fixture(scope="package")
def shared_database(postgres: str) -> Iterator[Database]:
    """The database of the shared daemon."""
    with fresh_database(postgres) as fresh:
        yield fresh


@pytest.fixture(scope="package")
def memory_house(shared_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Four worker processes over the in-memory backend, whose world is a file and outlives every one of them. No Redis."""
    folder: Path = tmp_path_factory.mktemp("memory")
    with house(shared_database, folder, settings_around(shared_database, folder, processes=4)) as built:
        yield built
