"""Between clients and a Postgres: a TCP relay that can lose a reply, cut, freeze and refuse, by what a connection is for.

It reads two things of the frontend protocol only: the startup packet, whose application_name says what the connection is
for ("molecule-worker lease jobs@host:pid" is one of the role `lease`), and the server's ReadyForQuery, which says that a
statement is over.
"""

import math
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Condition, Event, Thread
from time import monotonic
from typing import Final

from sqlalchemy import Engine

from tests.conftest import Database
from worker.domain import Secret
from worker.store import connect

_CHUNK: Final = 1 << 16
#: Seconds between two lost replies.
_QUIET_S: Final = 0.25
_READY: Final = re.compile(rb"Z\x00\x00\x00\x05[ITE]\Z")
_NAME: Final = re.compile(rb"application_name\x00molecule-worker ([^\x00]*)\x00")
#: Roles of connections; whatever is none of the held ones belongs to a pool.
LEASE, CLAIMS, JOURNAL, POOL = "lease", "claims", "journal", "pool"
WORK: Final = (CLAIMS, JOURNAL, POOL)


@dataclass
class Loss:
    """Replies to be lost: the statement is executed, its client is cut off before it hears of it.

    A connection's first such statement is spared, and everybody's for a moment after a loss, so that whoever asks again is
    answered: two losses in a row are another matter.
    """

    marker: bytes
    role: str  #: of this role only; empty for any
    left: int
    happened: int = 0
    quiet_until: float = 0.0  #: monotonic seconds
    all_happened: Event = field(default_factory=Event)


class _Link:
    """One client's connection and ours to the server for it."""

    def __init__(self, proxy: "Proxy", client: socket.socket) -> None:
        self.proxy = proxy
        self.client = client
        self.server = socket.socket(socket.AF_UNIX)
        self.role = ""
        self.closed = False
        self.losing: Loss | None = None  #: the reply to what was passed on last is not for the client
        self.spared: set[bytes] = set()  #: markers that have passed here
        self._swallowed = b""

    def run(self) -> None:
        try:
            first = self.client.recv(_CHUNK)
            self.role = _role(first)
            if not self.proxy.admits(self):
                return
            self.server.connect(self.proxy.target)
            self.server.sendall(first)
            back = Thread(target=self._pump, args=(self.server, self.client), daemon=True)
            back.start()
            self._pump(self.client, self.server)
            back.join()
        except OSError:
            return  # the server is away, or the client is: nothing to relay
        finally:
            self.close()
            self.proxy.forget(self)

    def close(self) -> None:
        self.closed = True
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while said := source.recv(_CHUNK):
                if target is self.server:
                    self.losing = self.losing or self.proxy.loses(self, said)
                self.proxy.pass_on(self, to_server=target is self.server)
                if target is self.client and self.losing is not None:
                    if self._executed(said):
                        break
                    continue
                target.sendall(said)
        self.close()

    def _executed(self, said: bytes) -> bool:
        self._swallowed += said
        if self.losing is None or not _READY.search(self._swallowed):
            return False
        self.proxy.lost(self.losing)
        return True


class Proxy:
    """Listens on a loopback port for as long as it is open. `target` is the server's unix socket."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._links: set[_Link] = set()
        self._losses: list[Loss] = []
        self._frozen: set[tuple[str, bool]] = set()  #: (role, whether towards the server)
        self._refused: dict[str, float] = {}  #: by role, how many more
        self.delay_s = 0.0  #: by how many seconds everything is late, each way
        self._changed = Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        Thread(target=self._accept, name="proxy", daemon=True).start()

    # ---- what a test does to the connections

    def lose(self, marker: bytes, role: str = "", times: int = 1) -> Loss:
        """The replies to the next `times` statements that contain `marker`."""
        loss = Loss(marker, role, times)
        with self._changed:
            self._losses.append(loss)
        return loss

    def cut(self, *roles: str) -> int:
        """End these connections now; how many. New ones are let in."""
        with self._changed:
            cut = [link for link in self._links if link.role in roles]
        for link in cut:
            link.close()
        with self._changed:
            self._changed.notify_all()
        return len(cut)

    def refuse(self, *roles: str, times: float = math.inf) -> None:
        """Let no new ones in, or not the next few."""
        with self._changed:
            self._refused |= dict.fromkeys(roles, times)

    def freeze(self, *roles: str, to_server: bool = True, to_client: bool = True) -> None:
        """Nothing passes and nobody is told: the connections stand, and so do new ones."""
        ways = [way for way, wanted in ((True, to_server), (False, to_client)) if wanted]
        with self._changed:
            self._frozen.update((role, way) for role in roles for way in ways)

    def heal(self) -> None:
        """Pass on what was held back, let everybody in, lose nothing more, and at once."""
        with self._changed:
            self.delay_s = 0.0
            self._frozen.clear()
            self._refused.clear()
            self._losses.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """End everything."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut(LEASE, *WORK)

    # ---- what the links ask

    def admits(self, link: _Link) -> bool:
        with self._changed:
            if self._refused.get(link.role, 0) > 0:
                self._refused[link.role] -= 1
                return False
            self._links.add(link)
            return True

    def forget(self, link: _Link) -> None:
        with self._changed:
            self._links.discard(link)

    def loses(self, link: _Link, said: bytes) -> Loss | None:
        with self._changed:
            for loss in self._losses:
                if loss.left and monotonic() >= loss.quiet_until and loss.role in {"", link.role} and loss.marker in said:
                    if loss.marker not in link.spared:
                        link.spared.add(loss.marker)
                        continue
                    loss.left -= 1
                    loss.quiet_until = monotonic() + _QUIET_S
                    return loss
        return None

    def lost(self, loss: Loss) -> None:
        with self._changed:
            loss.happened += 1
            if not loss.left:
                loss.all_happened.set()

    def pass_on(self, link: _Link, *, to_server: bool) -> None:
        """Wait for as long as this way is frozen. Raises OSError when the link was cut meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: link.closed or (link.role, to_server) not in self._frozen)
        Event().wait(self.delay_s)
        if link.closed:
            raise OSError("cut")

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                Thread(target=_Link(self, client).run, daemon=True).start()


def _role(startup: bytes) -> str:
    found = _NAME.search(startup)
    role = found.group(1).decode().split()[0] if found else ""
    return role if role in {LEASE, CLAIMS, JOURNAL} else POOL


@contextmanager
def between(database: Database) -> Iterator[tuple[Proxy, Secret]]:
    """A proxy in front of the database's server, and the database's address through it."""
    server = database.engine.url
    proxy = Proxy(f"{server.query['host']}/.s.PGSQL.5432")
    # In the clear, because the proxy reads along.
    plain = {"sslmode": "disable", "gssencmode": "disable"}
    url = server.set(drivername="postgresql", host="127.0.0.1", port=proxy.port, query=plain)
    try:
        yield proxy, Secret(url.render_as_string(hide_password=False))
    finally:
        proxy.close()


@contextmanager
def engine_through(url: Secret) -> Iterator[Engine]:
    """A pool over the proxy."""
    engine = connect.open_engine(url, name="caller", size=1)
    try:
        yield engine
    finally:
        engine.dispose()
