"""The HTTP door for operators: does this process live, is this host ready, what do the numbers say.

Workspaces cannot reach it: it is on loopback unless somebody asks for another address, and even there a caller from the
workspaces' network is refused.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.security_headers import SECURITY_HEADERS, SecurityHeaders

log = structlog.get_logger()

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"

#: What is asked for readiness → "ok", or why not.
Checks = Mapping[str, str]
#: Whether a caller's address is a workspace's.
Barred = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Answers:
    """What the door says. Both block: they run in a thread of their own."""

    ready: Callable[[], Checks]
    scrape: Callable[[], bytes]


def admin(answers: Answers, barred: Barred) -> Starlette:
    """The application."""

    async def readyz(_: Request) -> Response:
        checks = await run_in_threadpool(answers.ready)
        ready = all(said == "ok" for said in checks.values())
        return JSONResponse({"ready": ready, "checks": dict(checks)}, 200 if ready else 503)

    async def metrics(_: Request) -> Response:
        return Response(await run_in_threadpool(answers.scrape), media_type=_TEXT)

    app = Starlette(
        routes=[
            Route("/healthz", _healthz, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
        ],
        middleware=[Middleware(SecurityHeaders), Middleware(_OperatorsOnly, barred)],
        exception_handlers={Exception: _broken},
    )
    app.router.redirect_slashes = False
    return app


class _OperatorsOnly:
    """Refuses whoever calls from where workspaces are; a caller without an address is none."""

    def __init__(self, app: ASGIApp, barred: Barred) -> None:
        self._app = app
        self._barred = barred

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = (scope.get("client") or ("",))[0]
        if not _is_loopback(host) and await run_in_threadpool(self._barred, host):
            refused = JSONResponse({"error": "answer request: workspaces have no business here"}, 403)
            await refused(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def _healthz(_: Request) -> Response:
    """This process lives, and nothing more."""
    return JSONResponse({"status": "ok"})


async def _broken(_: Request, error: Exception) -> Response:
    log.error("request failed", error=type(error).__name__)
    return JSONResponse({"error": "answer request: internal error"}, 500, SECURITY_HEADERS)
