import pytest
from sqlalchemy import func, select, text

from tests.agents import CARD, HOST_URL, PUBLIC, Agent, assert_dressed, nowhere
from tests.conftest import Database
from tests.rows import add_token, add_waiting_job, add_workspace, row_of, was_woken
from tests.serving import served
from worker.domain import WorkspaceStatus as Status
from worker.receiver import receiver
from worker.store import tables, tokens
from worker.store.cache import Cache


def test_registering_brings_a_new_workspace_online_and_wakes_its_job(agent: Agent) -> None:
    add_waiting_job(agent.database, agent.id)
    answer = agent.register()
    assert_dressed(answer, 200)
    assert answer.json() == {"status": "registered"}
    row = agent.row
    assert (row.status, row.url, row.agent_card) == ("online", agent.url, CARD)
    assert row.last_heartbeat_at is not None
    assert agent.events == [("WORKSPACE_ONLINE", {"url": agent.url, "agent_card": CARD})]
    assert was_woken(agent.database)


def test_the_published_port_of_the_host_is_kept(agent: Agent) -> None:
    agent.becomes(Status.PROVISIONING, url=HOST_URL)
    agent.register()
    assert agent.row.url == HOST_URL
    assert agent.events[0][1]["url"] == HOST_URL


@pytest.mark.parametrize("old", [None, "http://127.0.0.1.evil.example", "http://127.0.0.11:80", PUBLIC, "https://127.0.0.1:1"])
def test_any_other_address_is_replaced(agent: Agent, old: str | None) -> None:
    agent.becomes(Status.ONLINE, url=old)
    assert agent.register().status_code == 200
    assert agent.row.url == agent.url


@pytest.mark.parametrize("status", [Status.PROVISIONING, Status.FAILED, Status.OFFLINE, Status.DEGRADED])
def test_registering_is_a_way_back_from_trouble(agent: Agent, status: Status) -> None:
    agent.becomes(status)
    assert agent.register().status_code == 200
    assert agent.row.status == "online"
    assert len(agent.events) == 1


def test_registering_again_is_no_event(agent: Agent) -> None:
    agent.register()
    assert agent.register(agent_card={"name": "Ada 2"}).status_code == 200
    assert agent.row.agent_card == {"name": "Ada 2"}
    assert len(agent.events) == 1


@pytest.mark.parametrize("status", [Status.PAUSED, Status.HIBERNATED])
def test_registering_does_not_wake_what_a_person_put_to_rest(agent: Agent, status: Status) -> None:
    before = agent.becomes(status).row
    assert_dressed(agent.register(), 409)
    assert agent.row == before
    assert agent.events == []


def test_a_removed_workspace_is_gone_even_with_a_live_token(agent: Agent) -> None:
    before = agent.becomes(Status.REMOVED).row
    for answer in (agent.register(), agent.beat()):
        assert_dressed(answer, 410)
    assert agent.row == before
    assert agent.events == []


def test_a_purged_workspace_is_never_inserted_again(agent: Agent) -> None:
    with agent.database.engine.begin() as connection:
        connection.execute(text("DELETE FROM worker.placements"))
        connection.execute(text("DELETE FROM workspaces"))
    for answer in (agent.register(), agent.beat()):
        assert_dressed(answer, 401)
    with agent.database.engine.connect() as connection:
        assert connection.execute(select(func.count()).select_from(tables.workspaces)).scalar_one() == 0


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://169.254.169.254", "http://10.0.0.8", "ftp://x", "http://nobody.example"]
)
def test_an_address_that_nobody_may_call_is_refused_and_changes_nothing(agent: Agent, url: str) -> None:
    before = agent.row
    answer = agent.register(url=url)
    assert_dressed(answer, 400)
    assert answer.json()["error"].startswith("register url: ")
    assert url not in answer.text
    assert agent.row == before


def test_private_addresses_may_be_registered_in_a_cloud_only(database: Database) -> None:
    workspace = add_workspace(database)
    token = add_token(database, workspace)
    with served(receiver(database.engine, Cache(None), saas=True, lookup=nowhere)) as client:
        agent = Agent(client, database, workspace, token)
        assert agent.register(url="http://10.0.0.8:8000").status_code == 200
        assert agent.register().status_code == 400
    assert row_of(database, workspace).url == "http://10.0.0.8:8000"


def test_nobody_unknown_makes_us_ask_a_name_server(database: Database) -> None:
    asked: list[str] = []

    def lookup(host: str) -> list[str]:
        asked.append(host)
        return []

    workspace = add_workspace(database)
    with served(receiver(database.engine, Cache(None), saas=False, lookup=lookup)) as client:
        stranger = Agent(client, database, workspace, tokens.mint())
        assert stranger.register(url="http://agent.example").status_code == 401
        assert asked == []
        known = Agent(client, database, workspace, add_token(database, workspace))
        assert known.register(url="http://agent.example").status_code == 400
    assert asked == ["agent.example"]


def test_a_token_that_is_replaced_during_the_lookup_registers_nothing(database: Database) -> None:
    workspace = add_workspace(database)
    token = add_token(database, workspace)

    def lookup(_: str) -> list[str]:
        add_token(database, workspace)
        return ["93.184.216.34"]

    with served(receiver(database.engine, Cache(None), saas=False, lookup=lookup)) as client:
        assert_dressed(Agent(client, database, workspace, token).register(url="http://agent.example"), 401)
    assert row_of(database, workspace).status == "provisioning"
