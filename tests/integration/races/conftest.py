from typing import Any

import pytest

from tests.conftest import Database
from tests.toys import Stage, state, status
from tests.waiting import until


@pytest.fixture
def stage() -> Stage:
    return Stage()


def ends(database: Database, job: str, wanted: str, within: float = 10.0) -> Any:
    until(lambda: state(database, job) == wanted, within=within, what=f"{job} {wanted}")
    return status(database, job)
