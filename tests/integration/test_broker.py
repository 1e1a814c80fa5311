"""Bells go out within their budget or not at all, over Redis and over RabbitMQ; and what is wrong is said without the password."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import pytest
from redis import Redis

from config.settings import Settings, load
from tests.rabbit import Rabbit
from tests.waiting import until
from worker.broker import Publisher, errors_of, fault
from worker.domain import Secret
from worker.engine.doorbell import Ring
from worker.errors import Misconfigured

RING = Ring("00000000-0000-4000-8000-000000000000", "workspace.provision", "memory.elsewhere", lost=False)
#: Seconds that a bell may cost at most: a few exchanges of 200 ms each, on a machine that has other things to do.
BOUND_S = 2.0


def at(url: str) -> Settings:
    return load({"CELERY_BROKER_URL": url})


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def publisher(url: str) -> Iterator[Publisher]:
    publish = Publisher(at(url))
    try:
        yield publish
    finally:
        publish.close()


def rings(publish: Publisher) -> bool:
    began = monotonic()
    sent = publish(RING)
    assert monotonic() < began + BOUND_S
    return sent


def rings_again(publish: Publisher) -> bool:
    return until(lambda: rings(publish), within=20.0, what="a bell is sent again")


@pytest.mark.parametrize(
    "url", ["nonsense://x", "redis://h:port/0", "redis://h:1/name", "amqp://a:b@h:x/", "redis://h:1/0;redis://h:x/0"]
)
def test_an_address_that_is_none_is_refused_before_anything_is_opened(url: str) -> None:
    with pytest.raises(Misconfigured, match="not a broker's URL"):
        errors_of(at(url))


def test_redis_that_freezes_is_full_or_gone_costs_no_more_than_the_budget(redis: Redis, redis_url: Secret) -> None:
    with publisher(redis_url.reveal()) as publish:
        rings_again(publish)
        with frozen(int(redis.info()["process_id"])):
            assert not rings(publish)
        rings_again(publish)
        redis.config_set("maxmemory", "1kb")
        assert not rings(publish)
        redis.config_set("maxmemory", "0")
        rings_again(publish)
        redis.flushall()
        assert rings(publish)
        assert redis.llen("molecule-worker:memory.elsewhere") == 1
        redis.client_kill_filter(_type="normal", skipme=True)
        rings_again(publish)


def test_rabbitmq_that_freezes_or_is_gone_costs_no_more_than_the_budget(rabbit: Rabbit) -> None:
    with publisher(rabbit.url.reveal()) as publish:
        rings_again(publish)
        assert rings(publish)
        with frozen(rabbit.pid):
            assert not rings(publish)
        rings_again(publish)
        rabbit.kill()
        assert not rings(publish)
        rabbit.start()
        rings_again(publish)


def said(url: str) -> str:
    found = fault(at(url))
    assert found is not None
    assert "hunter2" not in found.said + found.mend
    return found.said


def test_what_is_wrong_with_redis_is_one_sentence(redis: Redis, redis_url: Secret) -> None:
    url, password = redis_url.reveal(), redis.connection_pool.connection_kwargs["password"]

    assert fault(at(url)) is None
    assert said(url.replace(password, "hunter2")) == "it refuses the password"
    assert said(url.replace(f":{password}@", "")) == "it refuses the password"
    assert said(f"{url}99") == "it refuses that database"
    assert said("redis://:hunter2@127.0.0.1:1/0") == "nothing listens at its host and port"
    assert said("redis://:hunter2@nowhere.invalid:1/0") == "its host's name has no address"
    with frozen(int(redis.info()["process_id"])):
        assert said(url) == "no answer within 200 ms"


def test_what_is_wrong_with_rabbitmq_is_one_sentence(rabbit: Rabbit) -> None:
    url = rabbit.url.reveal()

    assert fault(at(url)) is None
    assert said(url.replace(rabbit.password, "hunter2")) == "it refuses the user or the password"
    assert said(f"{url}-hunter2") == "it has no such virtual host, or its user may not enter it"
    assert said("amqp://ada:hunter2@127.0.0.1:1//") == "nothing listens at its host and port"
    assert said(f"redis://:hunter2@127.0.0.1:{rabbit.port}/0") == "what listens there does not speak its protocol"
    with frozen(rabbit.pid):
        assert said(url) == "no answer within 200 ms"
