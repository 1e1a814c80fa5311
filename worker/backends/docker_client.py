"""One engine client per thread, because the library's session is not made to be shared and its long reads block."""

import os
import socket
import threading
from typing import Any, Final
from weakref import WeakSet

from docker import APIClient
from docker.utils import kwargs_from_env, parse_host

#: Seconds without an answer after which one call is given up.
QUICK_S: Final = 30
#: Start and removal wait for the kernel and for processes that end slowly.
SLOW_S: Final = 120
_KNOCK_S: Final = 5.0
_UNIX: Final = "http+unix://"


class Clients:
    """Clients of one engine: `base_url`, else what DOCKER_HOST and its companions say, else the local socket."""

    def __init__(self, base_url: str | None = None) -> None:
        self._options: dict[str, Any] = {"base_url": base_url} if base_url else dict(kwargs_from_env(dict(os.environ)))
        address = parse_host(self._options.get("base_url"), tls="tls" in self._options) or ""
        scheme, _, rest = address.removeprefix("http+").partition("://")
        #: where the engine is asked, without what an `ssh://` address says before its host
        self.address = f"{scheme}://{rest.rpartition('@')[2]}"
        self._socket = address.removeprefix(_UNIX) if address.startswith(_UNIX) else None
        self._here = threading.local()
        self._all: WeakSet[APIClient] = WeakSet()
        self._lock = threading.Lock()

    def get(self, deadline: int = QUICK_S) -> APIClient:
        """This thread's client, whose calls end within `deadline` seconds. Raises OSError when nothing listens."""
        self._knock()
        # A forked child must not talk on its parent's connections.
        if getattr(self._here, "pid", None) != os.getpid():
            client = APIClient(version="auto", timeout=deadline, **self._options)
            # Looking for a proxy in the environment takes as long as a quick call, and there is none to a socket.
            client.trust_env = self._socket is None
            with self._lock:
                self._all.add(client)
            self._here.client, self._here.pid = client, os.getpid()
        found: APIClient = self._here.client
        found.timeout = deadline
        return found

    def close(self) -> None:
        """Close the connections of every thread; a later call opens new ones."""
        with self._lock:
            for client in list(self._all):
                client.close()
            self._all.clear()
        self._here = threading.local()

    def _knock(self) -> None:
        """Try the local socket first, because the library leaves its own open when nobody listens, and hides the reason."""
        if self._socket is None:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knock:
            knock.settimeout(_KNOCK_S)
            knock.connect(self._socket)
