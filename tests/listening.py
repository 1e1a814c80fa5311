"""A small real HTTP server that writes down what agents tell the platform."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass(frozen=True)
class Call:
    path: str
    bearer: str | None
    body: dict[str, Any]


@dataclass
class Platform:
    """What was said so far; `refusals` answers of 503 are given before the first 200."""

    port: int = 0
    refusals: int = 0
    calls: list[Call] = field(default_factory=list)

    def of(self, path: str) -> list[Call]:
        return [call for call in list(self.calls) if call.path == path]


@contextmanager
def platform(address: str = "127.0.0.1", *, refusals: int = 0) -> Iterator[Platform]:
    """The server on an ephemeral port of `address`."""
    heard = Platform(refusals=refusals)

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            heard.calls.append(Call(self.path, self.headers.get("Authorization"), json.loads(content)))
            heard.refusals -= 1
            self.send_response(503 if heard.refusals >= 0 else 200)
            self.end_headers()
            self.wfile.write(b'{"status": "registered"}')

        def log_message(self, *_: object) -> None:
            """Nothing, because the list is the log."""

    server = ThreadingHTTPServer((address, 0), Answer)
    heard.port = server.server_port
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
