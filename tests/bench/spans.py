"""A stopwatch around the daemon's calls to Docker, to Gitea and from workspaces, so that its own share can be told from theirs."""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from threading import current_thread
from time import monotonic_ns
from typing import Any, Final

import httpx
from docker import APIClient
from starlette.types import ASGIApp, Receive, Scope, Send

from worker import daemons, receiver

#: The variable that names the folder in which each process leaves its spans.
FOLDER: Final = "BENCH_SPANS"


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time on the machine's monotonic clock, in nanoseconds."""

    what: str  #: docker | gitea | knock
    path: str
    begin: int
    end: int


def watch(folder: str) -> None:
    """From now on, in this process and in the ones that it forks."""
    file = Path(folder)

    def note(what: str, path: str, begin: int) -> None:
        # The look at the engine's health runs beside the jobs and belongs to none of them.
        if current_thread().name != "pulse":
            with (file / f"{os.getpid()}.jsonl").open("a") as out:
                out.write(json.dumps({"what": what, "path": path, "begin": begin, "end": monotonic_ns()}) + "\n")

    APIClient.send = _timed(APIClient.send, "docker", note)  # type: ignore[method-assign]  # because the library has no hook for it
    httpx.Client.send = _timed(httpx.Client.send, "gitea", note)  # type: ignore[method-assign]
    make = receiver.receiver
    vars(daemons)["receiver_application"] = lambda *given, **named: _knocks(make(*given, **named), note)


def read(folder: Path) -> list[Span]:
    """What all processes have left."""
    return [Span(**json.loads(line)) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]


def covered(spans: Iterable[Span], begin: int, end: int) -> int:
    """Nanoseconds of [begin, end] that lie in any of the spans."""
    total, upto = 0, begin
    for span in sorted(spans, key=lambda span: span.begin):
        last = min(span.end, end)
        if last > upto:
            total += last - max(span.begin, upto)
            upto = last
    return total


Note = Callable[[str, str, int], None]


def _timed(send: Callable[..., Any], what: str, note: Note) -> Callable[..., Any]:
    def timed(self: Any, request: Any, **options: Any) -> Any:
        begin = monotonic_ns()
        try:
            return send(self, request, **options)
        finally:
            note(what, str(request.url), begin)

    return timed


def _knocks(application: ASGIApp, note: Note) -> ASGIApp:
    async def knock(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            note("knock", scope["path"], monotonic_ns())
        await application(scope, receive, send)

    return knock
