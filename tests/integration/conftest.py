"""Services as the tests of one part after another want them."""

from collections.abc import Iterator

import httpx
import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.agents import Agent, nowhere
from tests.conftest import Database
from tests.rows import add_token, add_workspace
from tests.serving import served
from tests.waiting import until
from worker.domain import Secret
from worker.receiver import receiver
from worker.store.cache import Cache


@pytest.fixture
def redis(redis_url: Secret) -> Iterator[Redis]:
    with Redis.from_url(redis_url.reveal(), decode_responses=True) as client:
        until(lambda: _answers(client), what="Redis answers")
        yield client


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


@pytest.fixture
def door(database: Database) -> Iterator[httpx.Client]:
    with served(receiver(database.engine, Cache(None), saas=False, lookup=nowhere)) as client:
        yield client


@pytest.fixture
def agent(door: httpx.Client, database: Database) -> Agent:
    workspace = add_workspace(database)
    return Agent(door, database, workspace, add_token(database, workspace))


@pytest.fixture
def cached(database: Database, redis: Redis, redis_url: Secret) -> Iterator[tuple[Agent, Redis]]:
    with Cache(redis_url) as cache, served(receiver(database.engine, cache, saas=False, lookup=nowhere)) as client:
        workspace = add_workspace(database)
        yield Agent(client, database, workspace, add_token(database, workspace)), redis
