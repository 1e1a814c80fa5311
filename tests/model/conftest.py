"""The engine speaks of every kill; thousands of histories would fill the report."""

import logging
import random
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    before, state = structlog.get_config(), random.getstate()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    random.setstate(state)
    structlog.configure(**before)
