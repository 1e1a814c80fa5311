import select
import socket
from contextlib import closing, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.conftest import Database
from tests.toys import ask, remember, toy_kind
from worker.store.jobs import Claims, Register, Transactions

KIND = toy_kind()
_RECORD = {
    "direction": "forward",
    "position": 0,
    "name": "s1",
    "attempt": 0,
    "took_ms": 1,
    "status": "done",
    "next": "go",
    "to_direction": "forward",
    "to_position": 1,
    "to_attempt": 0,
}


class LateCommit:
    """Between a client and the server: the first COMMIT arrives half a second after its client was cut off."""

    def __init__(self, folder: Path, server: str) -> None:
        self._server = server
        self._cut = False
        self.delivered = Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen()
        Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with closing(socket.socket(socket.AF_UNIX)) as server, closing(client):
            server.connect(self._server)
            while True:
                for end in select.select([client, server], [], [])[0]:
                    said = end.recv(65536)
                    if not said:
                        return
                    if end is client and b"COMMIT" in said and not self._cut:
                        self._cut = True
                        client.close()
                        Event().wait(0.5)
                        server.sendall(said)
                        server.recv(65536)
                        self.delivered.set()
                        return
                    (server if end is client else client).sendall(said)


def test_rows_whose_commit_is_still_on_its_way_are_not_written_again(
    database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    remember(database, KIND)
    job = ask(database, subject=str(uuid4()))
    register = Register(database.url, name="test", pid=1, lease_s=60)
    claims = Claims(database.url, process_id=register.process_id, name="test")
    [claimed] = claims.claim(["toy"], 1)
    url = database.engine.url
    proxy = LateCommit(folder := tmp_path_factory.mktemp("p"), f"{url.query['host']}/.s.PGSQL.5432")
    engine = create_engine(url.set(query={"host": str(folder)}), poolclass=NullPool)

    def write(connection: Any) -> None:
        connection.execute(text("INSERT INTO structure_events (event_type) VALUES ('ONCE')"))

    reply = Transactions(engine).apply_with({"job": job, "fence": claimed.fence, **_RECORD}, write)
    assert proxy.delivered.wait(5)
    proxy.close()
    claims.close()
    register.close()
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM structure_events")).scalar_one() == 1
    assert reply is not None
