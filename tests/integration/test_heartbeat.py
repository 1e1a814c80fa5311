import json

import pytest
from redis import Redis
from redis.client import PubSub
from sqlalchemy import text

from tests.agents import HOST_URL, PUBLIC, Agent, assert_dressed
from tests.conftest import Database
from tests.rows import add_token, add_waiting_job, add_workspace, events_of, row_of, was_woken
from tests.serving import served
from tests.waiting import until
from worker.domain import Secret
from worker.domain import WorkspaceStatus as Status
from worker.receiver import receiver
from worker.store.cache import Cache


def test_a_heartbeat_is_kept_in_the_row(agent: Agent) -> None:
    report = {
        "error_rate": 0.25,
        "sample_error": "boom\0",
        "active_tasks": 3,
        "current_task": "t",
        "uptime_seconds": 60,
        "monthly_spend": 7,
    }
    answer = agent.beat(**report)
    assert_dressed(answer, 200)
    assert answer.json() == {"status": "ok"}
    row = agent.row
    assert (row.last_error_rate, row.last_sample_error, row.active_tasks, row.current_task) == (0.25, "boom\ufffd", 3, "t")
    assert (row.uptime_seconds, row.monthly_spend) == (60, 7)
    assert row.last_heartbeat_at is not None
    agent.beat()
    assert agent.row.monthly_spend == 7


@pytest.mark.parametrize("status", [Status.PROVISIONING, Status.OFFLINE])
def test_a_heartbeat_brings_online_and_wakes_the_job(agent: Agent, status: Status) -> None:
    agent.becomes(status)
    add_waiting_job(agent.database, agent.id)
    agent.beat()
    assert agent.row.status == "online"
    assert agent.events == [("WORKSPACE_ONLINE", {"recovered_from": status.value})]
    assert was_woken(agent.database)


def test_a_heartbeat_that_changes_nothing_wakes_nobody(agent: Agent) -> None:
    agent.becomes(Status.ONLINE)
    add_waiting_job(agent.database, agent.id)
    agent.beat()
    assert not was_woken(agent.database)
    assert agent.events == []


def test_trouble_is_told_once_and_so_is_its_end(agent: Agent) -> None:
    agent.becomes(Status.ONLINE)
    for rate, status in ((0.5, "degraded"), (0.6, "degraded"), (0.1, "degraded"), (0.05, "online")):
        agent.beat(error_rate=rate, sample_error="private output")
        assert agent.row.status == status
    assert agent.events == [("WORKSPACE_DEGRADED", {"error_rate": 0.5}), ("WORKSPACE_ONLINE", {"recovered_from": "degraded"})]


def test_a_wedged_runtime_is_degraded_whatever_its_error_rate(agent: Agent) -> None:
    agent.becomes(Status.ONLINE)
    agent.beat(error_rate=0, runtime_state="wedged")
    assert agent.row.status == "degraded"
    assert agent.events == [("WORKSPACE_DEGRADED", {"error_rate": 0.0, "runtime_state": "wedged"})]


@pytest.mark.parametrize("status", [Status.PAUSED, Status.HIBERNATED, Status.FAILED])
def test_a_heartbeat_does_not_move_what_is_at_rest_or_failed(agent: Agent, status: Status) -> None:
    agent.becomes(status)
    assert agent.beat().status_code == 200
    assert agent.row.status == status
    assert agent.events == []


def test_the_reason_of_a_failure_survives_late_heartbeats(agent: Agent) -> None:
    agent.becomes(Status.FAILED, last_sample_error="missing required env")
    agent.beat(sample_error="")
    assert agent.row.last_sample_error == "missing required env"


def test_a_malformed_heartbeat_is_refused_and_changes_nothing(agent: Agent) -> None:
    before = agent.row
    assert_dressed(agent.beat(error_rate=2), 400)
    assert agent.row == before


def test_a_flushed_cache_is_whole_again_after_the_next_heartbeat(cached: tuple[Agent, Redis]) -> None:
    agent, redis = cached
    agent.becomes(Status.PROVISIONING, url=HOST_URL)
    agent.register()
    keys = [f"ws:{agent.id}", f"ws:{agent.id}:url", f"ws:{agent.id}:internal_url"]
    whole = ["online", HOST_URL, agent.url]
    assert redis.mget(keys) == whole
    redis.flushall()
    agent.beat()
    assert redis.mget(keys) == whole
    redis.flushall()
    agent.beat(runtime_state="wedged")
    assert redis.mget(keys) == whole


def test_an_agent_elsewhere_is_cached_at_its_own_address(cached: tuple[Agent, Redis]) -> None:
    agent, redis = cached
    agent.register(url=PUBLIC)
    assert redis.mget([f"ws:{agent.id}:url", f"ws:{agent.id}:internal_url"]) == [PUBLIC, PUBLIC]


@pytest.mark.parametrize("status", [Status.PAUSED, Status.HIBERNATED, Status.FAILED, Status.REMOVED])
def test_nobody_at_rest_is_cached_as_online(cached: tuple[Agent, Redis], status: Status) -> None:
    agent, redis = cached
    agent.becomes(status)
    agent.beat()
    assert redis.keys() == []


def test_what_happened_is_broadcast_after_it_is_true(cached: tuple[Agent, Redis]) -> None:
    agent, redis = cached
    with PubSub(redis.connection_pool) as listener:
        listener.subscribe("events:broadcast")
        until(lambda: listener.get_message(timeout=1))
        agent.beat()
        message = json.loads(until(lambda: listener.get_message(timeout=1))["data"])
    assert (message["event"], message["workspace_id"]) == ("WORKSPACE_ONLINE", agent.id)
    assert message["payload"] == {"recovered_from": "provisioning"}


def test_an_absent_cache_costs_nobody_an_answer(database: Database) -> None:
    workspace = add_workspace(database)
    token = add_token(database, workspace)
    with Cache(Secret("redis://127.0.0.1:1/0")) as cache, served(receiver(database.engine, cache, saas=False)) as client:
        agent = Agent(client, database, workspace, token)
        assert [agent.register().status_code, agent.beat().status_code] == [200, 200]
    assert row_of(database, workspace).status == "online"


def test_the_platforms_own_newer_status_is_left_at_rest(agent: Agent) -> None:
    with agent.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ALTER TYPE workspace_status ADD VALUE 'hibernating'"))
        connection.execute(text("UPDATE workspaces SET status = 'hibernating'"))
    agent.database.engine.dispose()
    assert agent.register().status_code == 409
    assert agent.beat().status_code == 200
    assert events_of(agent.database, agent.id) == []
