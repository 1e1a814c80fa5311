import json
import socket
from time import monotonic

import pytest
from redis import Redis
from redis.client import PubSub
from structlog.testing import capture_logs

from tests.waiting import until
from worker.domain import Secret
from worker.errors import Misconfigured
from worker.store.cache import Cache
from worker.store.events import Event

ID = "0f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3"
KEYS = [f"ws:{ID}", f"ws:{ID}:internal_url", f"ws:{ID}:url"]


def test_the_platforms_three_keys_are_written_with_their_lifetimes(redis: Redis, redis_url: Secret) -> None:
    with Cache(redis_url) as cache:
        cache.mark_online(ID, "http://127.0.0.1:32768", "http://ws-0f3c9a52-7d1:8000")
    assert sorted(redis.keys()) == KEYS
    assert redis.mget(KEYS) == ["online", "http://ws-0f3c9a52-7d1:8000", "http://127.0.0.1:32768"]
    assert [redis.ttl(key) for key in KEYS] == pytest.approx([180, 300, 300], abs=3)


def test_an_unknown_address_leaves_what_is_cached(redis: Redis, redis_url: Secret) -> None:
    with Cache(redis_url) as cache:
        cache.mark_online(ID, "http://a", "http://b")
        cache.mark_online(ID, None, None)
    assert redis.mget(KEYS) == ["online", "http://b", "http://a"]


def test_clearing_takes_all_three_and_no_other(redis: Redis, redis_url: Secret) -> None:
    redis.set("ws:other", "online")
    with Cache(redis_url) as cache:
        cache.mark_online(ID, "http://a", "http://b")
        cache.clear(ID)
    assert redis.keys() == ["ws:other"]


def test_an_event_is_broadcast_in_the_platforms_shape(redis: Redis, redis_url: Secret) -> None:
    with PubSub(redis.connection_pool) as listener, Cache(redis_url) as cache:
        listener.subscribe("events:broadcast")
        until(lambda: listener.get_message(timeout=1))
        cache.publish([Event("WORKSPACE_ONLINE", ID, {"url": "http://a"})])
        message = json.loads(until(lambda: listener.get_message(timeout=1))["data"])
    assert message["timestamp"].endswith("Z")
    assert {**message, "timestamp": ""} == {
        "event": "WORKSPACE_ONLINE",
        "workspace_id": ID,
        "timestamp": "",
        "payload": {"url": "http://a"},
    }


def exercise(cache: Cache) -> None:
    cache.mark_online(ID, "http://a", "http://b")
    cache.publish([Event("X", ID, {})])
    cache.clear(ID)


def test_without_an_address_nothing_happens() -> None:
    with capture_logs() as logs, Cache(None) as cache:
        exercise(cache)
    assert logs == []


def test_an_absent_redis_is_one_log_line_without_its_address() -> None:
    with capture_logs() as logs, Cache(Secret("redis://:hunter2@127.0.0.1:1/0")) as cache:
        exercise(cache)
        exercise(cache)
    assert [entry["event"] for entry in logs] == ["cache does not answer"]
    assert "hunter2" not in str(logs)
    assert "127.0.0.1" not in str(logs)


def test_a_redis_that_never_answers_costs_less_than_half_a_second() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, capture_logs() as logs:
        url = Secret(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        with Cache(url) as cache:
            begun = monotonic()
            cache.clear(ID)
            assert monotonic() - begun < 0.5
    assert len(logs) == 1


def test_a_wrong_address_is_the_operators_fault_and_not_shown() -> None:
    with pytest.raises(Misconfigured) as caught:
        Cache(Secret("http://:hunter2@127.0.0.1"))
    assert "hunter2" not in str(caught.value)
