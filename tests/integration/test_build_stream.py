import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import parse_qs, urlsplit

import pytest
from docker import APIClient

from tests.waiting import until
from worker.errors import Retryable, Unreachable, WorkerError
from worker.images import build
from worker.images.faults import TemplateFault
from worker.images.patience import Patience
from worker.images.redact import Redaction
from worker.images.tail import Tail

ID = "sha256:" + "0123456789abcdef" * 4
SUCCESS: list[dict[str, object]] = [
    {"stream": "Step 1/1 : FROM scratch"},
    {"stream": "\n"},
    {"aux": {"ID": ID}},
    {"stream": "Successfully built 0123456789ab\n"},
]
LABELS = {"molecule.image.sha": "a" * 40}


@dataclass
class Peer:
    """What a stand-in for the engine answers, and what it was asked. The real one cannot be made to break off."""

    answer: list[dict[str, object]] = field(default_factory=list)
    status: int = 200
    breaks: bool = False
    hangs: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    query: dict[str, list[str]] = field(default_factory=dict)
    released: Event = field(default_factory=Event)
    left: Event = field(default_factory=Event)
    port: int = 0


@contextmanager
def serving(peer: Peer) -> Iterator[APIClient]:
    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            peer.headers = dict(self.headers.items())
            peer.query = parse_qs(urlsplit(self.path).query)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(peer.status)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in peer.answer:
                line = json.dumps(event).encode() + b"\r\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            if peer.hangs:
                peer.left.set() if self.rfile.read(1) == b"" else None
            if not peer.breaks and not peer.hangs:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's signature
            """Nothing to say."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    client = APIClient(base_url=f"http://127.0.0.1:{server.server_port}", version="1.41")
    try:
        yield client
    finally:
        client.close()
        server.shutdown()
        server.server_close()
        thread.join()


def patience(**limits: float) -> Patience:
    return Patience(**{"ceiling_s": 30.0, "stall_s": 30.0, **limits}, stopping=lambda: False, beat=lambda: None)


def built(client: APIClient, tail: Tail | None = None, **limits: float) -> str:
    order = build.Order("linux/amd64", LABELS)
    return build.built(client, io.BytesIO(b"tar"), order, patience(**limits), tail or Tail(Redaction(None)))


def test_a_build_asks_for_a_platform_and_labels_and_nothing_else() -> None:
    peer = Peer(SUCCESS)
    with serving(peer) as client:
        assert built(client) == ID

    assert set(peer.query) == {"dockerfile", "rm", "forcerm", "platform", "labels"}
    assert peer.query["platform"] == ["linux/amd64"]
    assert json.loads(peer.query["labels"][0]) == LABELS


def test_no_stored_password_of_a_registry_is_sent_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"auths": {"host.invalid": {"auth": "dXNlcjpodW50ZXIy"}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    peer = Peer(SUCCESS)
    with serving(peer) as client:
        built(client)

    assert not [name for name in peer.headers if name.lower().startswith("x-registry")]


@pytest.mark.parametrize("peer", [Peer(SUCCESS[:-1]), Peer([]), Peer(SUCCESS, breaks=True), Peer(SUCCESS[:2], breaks=True)])
def test_a_stream_that_does_not_close_as_done_is_a_failure(peer: Peer) -> None:
    with serving(peer) as client, pytest.raises(Retryable):
        built(client)


@pytest.mark.parametrize(
    ("peer", "kind"),
    [
        (Peer([{"message": "dockerfile parse error line 1"}], status=400), TemplateFault),
        (Peer([{"message": "it broke"}], status=500), Retryable),
        (Peer([*SUCCESS[:2], {"error": "x", "errorDetail": {"code": 1, "message": "x"}}]), TemplateFault),
        (Peer([*SUCCESS, {"error": "late"}]), TemplateFault),
    ],
)
def test_an_error_counts_wherever_it_comes(peer: Peer, kind: type[WorkerError]) -> None:
    tail = Tail(Redaction(None))
    with serving(peer) as client, pytest.raises(kind) as caught:
        built(client, tail)

    assert type(caught.value) is kind
    assert "error: " in tail.text()


def test_an_engine_that_is_not_there_is_unreachable() -> None:
    client = APIClient(base_url="http://127.0.0.1:9", version="1.41")
    with pytest.raises(Unreachable):
        built(client)
    client.close()


def test_a_build_that_is_given_up_closes_the_connection() -> None:
    peer = Peer(SUCCESS[:1], hangs=True)
    with serving(peer) as client:
        with pytest.raises(Retryable, match="no output"):
            built(client, stall_s=0.3)
        until(peer.left.is_set, within=2)
