"""A workspace as the receiver sees it: somebody with a token who knocks at a real door."""

from dataclasses import dataclass
from typing import Any

import httpx

from tests.conftest import Database
from tests.rows import events_of, row_of, set_columns
from worker.domain import Secret, container_name
from worker.domain import WorkspaceStatus as Status
from worker.security_headers import SECURITY_HEADERS

CARD = {"name": "Ada", "skills": []}
PUBLIC = "http://93.184.216.34:8000"
HOST_URL = "http://127.0.0.1:32768"
PATHS = ("/registry/register", "/registry/heartbeat")


def nowhere(_: str) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Agent:
    """A workspace with its token, and the door it knocks at."""

    client: httpx.Client
    database: Database
    id: str
    token: Secret

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token.reveal()}"}

    @property
    def url(self) -> str:
        return f"http://{container_name(self.id)}:8000"

    def register(self, **fields: Any) -> httpx.Response:
        body = {"id": self.id, "url": self.url, "agent_card": CARD, **fields}
        return self.client.post("/registry/register", json=body, headers=self.bearer)

    def beat(self, **fields: Any) -> httpx.Response:
        return self.client.post("/registry/heartbeat", json={"workspace_id": self.id, **fields}, headers=self.bearer)

    def becomes(self, status: Status, **columns: Any) -> "Agent":
        set_columns(self.database, self.id, status=status, **columns)
        return self

    @property
    def row(self) -> Any:
        return row_of(self.database, self.id)

    @property
    def events(self) -> list[tuple[str, Any]]:
        return events_of(self.database, self.id)


def assert_dressed(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    assert {name: answer.headers.get_list(name) for name in SECURITY_HEADERS} == {k: [v] for k, v in SECURITY_HEADERS.items()}
