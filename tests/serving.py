"""An application behind a real uvicorn, on loopback unless told otherwise, because an in-process client would not see what a socket sees."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import httpx
import uvicorn
from starlette.types import ASGIApp


@contextmanager
def served(app: ASGIApp, host: str = "127.0.0.1") -> Iterator[httpx.Client]:
    """A client whose base address is the served application."""
    with socket.create_server((host, 0)) as listener:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        with httpx.Client(base_url=f"http://{host}:{listener.getsockname()[1]}", timeout=10, trust_env=False) as client:
            yield client
        server.should_exit = True
        thread.join(10)
