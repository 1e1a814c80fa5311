from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from tests.agents import CARD, PATHS, PUBLIC, Agent, assert_dressed
from tests.conftest import Database
from tests.waiting import until
from worker.reports import heartbeat_of, registration_of
from worker.store import liveness, tokens, workspaces


def blocked(database: Database) -> bool:
    with database.engine.connect() as connection:
        return bool(connection.execute(text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())


@pytest.mark.parametrize("path", PATHS)
def test_a_call_that_comes_while_the_tombstone_is_set_finds_it(agent: Agent, path: str) -> None:
    call = agent.register if path == PATHS[0] else agent.beat
    with ThreadPoolExecutor(1) as pool:
        with agent.database.engine.begin() as connection:
            workspaces.tombstone(connection, agent.id)
            answer = pool.submit(call)
            until(lambda: blocked(agent.database), what="the call waits for the row")
        assert answer.result().status_code == 401
    assert agent.row.status == "removed"
    assert [name for name, _ in agent.events] == ["WORKSPACE_REMOVED"]


@pytest.mark.parametrize("report", ["register", "beat"])
def test_the_row_functions_by_themselves_never_bring_back_a_tombstone(agent: Agent, report: str) -> None:
    def call() -> liveness.Standing | None:
        with agent.database.engine.begin() as other:
            if report == "register":
                return liveness.register(other, agent.id, registration_of({"url": PUBLIC, "agent_card": CARD}))
            return liveness.beat(other, agent.id, heartbeat_of({}))

    with ThreadPoolExecutor(1) as pool:
        with agent.database.engine.begin() as connection:
            workspaces.tombstone(connection, agent.id)
            answer = pool.submit(call)
            until(lambda: blocked(agent.database), what="the call waits for the row")
        assert answer.result() is None
    assert agent.row.status == "removed"
    assert agent.row.url is None


def test_a_tombstone_that_comes_while_a_call_is_answered_has_the_last_word(agent: Agent) -> None:
    def remove() -> bool:
        with agent.database.engine.begin() as other:
            return workspaces.tombstone(other, agent.id)

    with ThreadPoolExecutor(1) as pool:
        with agent.database.engine.begin() as connection:
            assert tokens.owner_of(connection, agent.token) == agent.id
            removed = pool.submit(remove)
            until(lambda: blocked(agent.database), what="the deletion waits for the row")
            assert liveness.register(connection, agent.id, registration_of({"url": PUBLIC, "agent_card": CARD}))
        assert removed.result()
    assert agent.row.status == "removed"
    assert [name for name, _ in agent.events] == ["WORKSPACE_ONLINE", "WORKSPACE_REMOVED"]


def test_a_row_that_stays_locked_is_503_and_not_a_hanging_request(agent: Agent) -> None:
    with agent.database.engine.begin() as connection:
        workspaces.get(connection, agent.id, lock=True)
        assert_dressed(agent.beat(), 503)
