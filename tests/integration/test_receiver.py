import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import func, insert
from structlog.testing import capture_logs

from tests.agents import CARD, PATHS, Agent, assert_dressed
from tests.conftest import Database
from tests.rows import add_token, add_workspace, row_of
from tests.serving import served
from worker.domain import Secret
from worker.domain import WorkspaceStatus as Status
from worker.receiver import receiver
from worker.store import connect, tables, tokens
from worker.store.cache import Cache


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "shown",
    [{}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Basic abc"}, {"Authorization": "Bearer unknown"}],
)
def test_without_a_known_bearer_there_is_no_way_in(agent: Agent, path: str, shown: dict[str, str]) -> None:
    with agent.database.engine.begin() as connection:
        tokens.revoke_all(connection, agent.id)  # the platform would let anybody in now
    before = agent.row
    answer = agent.client.post(path, json={"id": agent.id, "url": agent.url, "agent_card": CARD}, headers=shown)
    assert_dressed(answer, 401)
    assert agent.row == before


def test_a_revoked_token_opens_nothing(agent: Agent) -> None:
    add_token(agent.database, agent.id)
    assert_dressed(agent.register(), 401)
    assert_dressed(agent.beat(), 401)


def test_two_bearers_are_none(agent: Agent) -> None:
    headers = [("Authorization", value) for value in (*agent.bearer.values(), "Bearer other")]
    assert agent.client.post("/registry/heartbeat", json={}, headers=headers).status_code == 401


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", ["id", "workspace_id"])
def test_nobody_speaks_for_another_workspace(agent: Agent, path: str, key: str) -> None:
    other = add_workspace(agent.database)
    before = agent.row, row_of(agent.database, other)
    body = {"url": agent.url, "agent_card": CARD, key: other}
    assert_dressed(agent.client.post(path, json=body, headers=agent.bearer), 403)
    assert (agent.row, row_of(agent.database, other)) == before


@pytest.mark.parametrize("claimed", ["system:provisioner", "0f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3", ""])
def test_a_header_never_helps(agent: Agent, claimed: str) -> None:
    headers = {**agent.bearer, "X-Workspace-ID": claimed}
    assert_dressed(agent.client.post("/registry/heartbeat", json={}, headers=headers), 403)
    del headers["Authorization"]
    assert_dressed(agent.client.post("/registry/heartbeat", json={}, headers=headers), 401)


def test_the_bearer_alone_is_enough(agent: Agent) -> None:
    headers = {"authorization": f"bearer {agent.token.reveal()}", "X-Workspace-ID": agent.id.upper()}
    assert agent.client.post("/registry/heartbeat", json={}, headers=headers).status_code == 200


# ---- what is not an answer of the two


def test_health_needs_nobody(door: httpx.Client) -> None:
    answer = door.get("/healthz")
    assert_dressed(answer, 200)
    assert answer.json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("POST", "/registry/register/", 404), ("GET", "/registry/register", 405), ("DELETE", "/healthz", 405)],
)
def test_an_unknown_way_is_refused_in_the_same_dress(door: httpx.Client, method: str, path: str, status: int) -> None:
    assert_dressed(door.request(method, path), status)


@pytest.mark.parametrize("content", [b"", b"[]", b"nonsense", b'{"a": NaN}', b"[" * 50000])
def test_a_body_that_is_no_json_object_is_refused(agent: Agent, content: bytes) -> None:
    for path in PATHS:
        assert_dressed(agent.client.post(path, content=content, headers=agent.bearer), 400)


def chunks(size: int) -> Iterator[bytes]:
    body = json.dumps({"current_task": "x" * (size - len('{"current_task": ""}'))}).encode()
    for start in range(0, size, 4096):
        yield body[start : start + 4096]


def test_64_kib_are_accepted_and_a_byte_more_is_not(agent: Agent) -> None:
    for content in (chunks, lambda size: b"".join(chunks(size))):
        assert_dressed(agent.client.post("/registry/heartbeat", content=content(65536), headers=agent.bearer), 200)
        assert_dressed(agent.client.post("/registry/heartbeat", content=content(65537), headers=agent.bearer), 413)


def test_an_announced_flood_is_refused_before_it_comes(door: httpx.Client) -> None:
    address = (door.base_url.host, door.base_url.port or 0)
    with socket.create_connection(address, timeout=5) as wire:
        wire.sendall(b"POST /registry/heartbeat HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert wire.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_an_absent_database_is_503_and_says_nothing_of_itself() -> None:
    engine = connect.open_engine(Secret("postgresql://worker:hunter2@127.0.0.1:1/x"), name="tests")
    token = tokens.mint().reveal()
    with served(receiver(engine, Cache(None), saas=False)) as client, capture_logs() as logs:
        answer = client.post("/registry/heartbeat", json={}, headers={"Authorization": f"Bearer {token}"})
    assert_dressed(answer, 503)
    assert int(answer.headers["Retry-After"]) > 0
    assert [entry["event"] for entry in logs] == ["database does not answer"]
    for leak in ("hunter2", "127.0.0.1", token, "psycopg2", "Traceback"):
        assert leak not in answer.text + str(logs)


def test_a_fault_of_ours_is_500_in_the_same_dress(database: Database) -> None:
    def broken(_: str) -> list[str]:
        raise ZeroDivisionError("hunter2")

    workspace = add_workspace(database)
    with served(receiver(database.engine, Cache(None), saas=False, lookup=broken)) as client, capture_logs() as logs:
        answer = Agent(client, database, workspace, add_token(database, workspace)).register(url="http://agent.example")
    assert_dressed(answer, 500)
    assert "hunter2" not in answer.text + str(logs)


def test_no_answer_holds_the_token(agent: Agent) -> None:
    answers = [agent.register(), agent.beat(), agent.beat(error_rate=2), agent.register(url="ftp://x"), agent.beat(id="x")]
    agent.becomes(Status.REMOVED)
    answers += [agent.register(), agent.beat()]
    assert [answer.status_code for answer in answers] == [200, 200, 400, 400, 403, 410, 410]
    for answer in answers:
        assert agent.token.reveal()[:8] not in answer.text + str(answer.headers)


def test_a_token_of_the_platforms_making_is_as_good(agent: Agent) -> None:
    other = Secret("short")
    with agent.database.engine.begin() as connection:
        digest = func.sha256(func.convert_to("short", "UTF8"))
        row = {"workspace_id": agent.id, "token_hash": digest, "prefix": "short"}
        connection.execute(insert(tables.workspace_auth_tokens).values(**row))
    assert Agent(agent.client, agent.database, agent.id, other).beat().status_code == 200
