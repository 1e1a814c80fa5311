"""The HTTP door that workspaces knock at: they register, and they say that they are alive.

Who calls is decided by the bearer alone. There is no bootstrap window as in the platform's own registry (no live token, hence no
bearer needed): whoever reached the network could take a workspace over while its token was being renewed, and every workspace of
this worker finds its token in its volume before it starts.
"""

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from worker import agent_url, body, reports
from worker.domain import Secret, WorkspaceId
from worker.errors import Refused
from worker.security_headers import SECURITY_HEADERS, SecurityHeaders
from worker.store import liveness, tokens, workspaces
from worker.store.cache import Cache

_BEARER: Final = re.compile(r"bearer +([!-~]{1,512})\Z", re.IGNORECASE)
#: An agent knocks again by itself: better a quick 503 than a queue of requests behind a locked row.
_BUDGET: Final = text("SELECT set_config('lock_timeout', '3s', true), set_config('statement_timeout', '5s', true)")
_RETRY_AFTER_SECONDS: Final = 5

_log = structlog.get_logger()

Act = Callable[["Call"], dict[str, str]]


@dataclass(frozen=True, slots=True)
class Call:
    """One request, read and not yet believed."""

    bearer: Secret
    fields: dict[str, Any]
    claimed: list[str]  #: every X-Workspace-ID


@dataclass(frozen=True, slots=True)
class Registry:
    """What the two calls do. Blocking: runs in a thread of its own."""

    engine: Engine
    cache: Cache
    saas: bool
    lookup: agent_url.Lookup

    def register(self, call: Call) -> dict[str, str]:
        """Online with url and card.

        The url is judged before the transaction, because a name server may be slow, and only for who is known, because it
        asks one; that first look locks and writes nothing.
        """
        report = reports.registration_of(call.fields)
        with self.engine.connect() as connection:
            connection.execute(_BUDGET)
            workspace_id = _known(call, tokens.seen(connection, call.bearer))
        agent_url.check(report.url, workspace_id, saas=self.saas, lookup=self.lookup)
        with self._caller(call) as (connection, workspace_id):
            standing = liveness.register(connection, workspace_id, report)
            if standing is None:
                raise _at_rest(connection, workspace_id)
        self._tell(workspace_id, standing)
        return {"status": "registered"}

    def heartbeat(self, call: Call) -> dict[str, str]:
        """Alive, in this state. Also mends the cache, whatever became of it."""
        report = reports.heartbeat_of(call.fields)
        with self._caller(call) as (connection, workspace_id):
            standing = liveness.beat(connection, workspace_id, report)
            if standing is None:
                raise _at_rest(connection, workspace_id)
        self._tell(workspace_id, standing)
        return {"status": "ok"}

    @contextmanager
    def _caller(self, call: Call) -> Iterator[tuple[Connection, WorkspaceId]]:
        """A transaction that holds the caller's row. Raises HTTPException 401 and 403."""
        with self.engine.begin() as connection:
            connection.execute(_BUDGET)
            yield connection, _known(call, tokens.owner_of(connection, call.bearer))

    def _tell(self, workspace_id: str, standing: liveness.Standing) -> None:
        """After the commit: the cache, and whoever listens."""
        if standing.answers:
            self.cache.mark_online(workspace_id, standing.url, standing.internal_url)
        if standing.event is not None:
            self.cache.publish([standing.event])
            _log.info("workspace moved", workspace_id=workspace_id, status=standing.status.value)


def receiver(engine: Engine, cache: Cache, saas: bool, lookup: agent_url.Lookup = agent_url.resolve) -> Starlette:
    """The application. `saas`: private addresses are the cloud's own and may be registered. Closes neither engine nor cache."""
    registry = Registry(engine, cache, saas, lookup)
    app = Starlette(
        routes=[
            Route("/registry/register", _endpoint(registry.register), methods=["POST"]),
            Route("/registry/heartbeat", _endpoint(registry.heartbeat), methods=["POST"]),
            Route("/healthz", _healthz, methods=["GET"]),
        ],
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={
            HTTPException: _refused_by_http,
            Refused: _refused_by_rule,
            SQLAlchemyError: _unavailable,
            ClientDisconnect: _gone_away,
            Exception: _broken,
        },
    )
    app.router.redirect_slashes = False  # because a redirect would send a bearer to whatever the Host header says
    return app


def _endpoint(act: Act) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        received = await body.read(request)
        bearer = _bearer(request)
        call = Call(bearer, body.parse(received), request.headers.getlist("x-workspace-id"))
        return JSONResponse(await run_in_threadpool(act, call))

    return endpoint


async def _healthz(_: Request) -> Response:
    """Alive, and nothing more: whether the database answers is `/readyz` on the admin address."""
    return JSONResponse({"status": "ok"})


def _bearer(request: Request) -> Secret:
    shown = request.headers.getlist("authorization")
    match = _BEARER.match(shown[0]) if len(shown) == 1 else None
    if match is None:
        raise _unknown()
    return Secret(match.group(1))


def _known(call: Call, owner: WorkspaceId | None) -> WorkspaceId:
    if owner is None:
        raise _unknown()
    if reports.names_other(call.fields, call.claimed, owner):
        raise HTTPException(403, "authenticate: the id is not the one of this token")
    return owner


def _unknown() -> HTTPException:
    return HTTPException(401, "authenticate: no live token was shown", headers={"WWW-Authenticate": "Bearer"})


def _at_rest(connection: Connection, workspace_id: str) -> HTTPException:
    if workspaces.is_removed(connection, workspace_id):
        return HTTPException(410, "find workspace: it was removed")
    return HTTPException(409, "register: the workspace is paused or hibernated")


async def _refused_by_http(_: Request, error: Exception) -> Response:
    detail, status, headers = "", 500, None
    if isinstance(error, HTTPException):
        detail, status, headers = error.detail, error.status_code, error.headers
    return JSONResponse({"error": detail}, status, headers)


async def _refused_by_rule(_: Request, error: Exception) -> Response:
    message, hint = (error.message, error.hint) if isinstance(error, Refused) else ("", "")
    return JSONResponse({"error": message, "hint": hint}, 400)


async def _unavailable(_: Request, error: Exception) -> Response:
    # The name and the database's code only, because the text may hold values or the address.
    code = getattr(getattr(error, "orig", None), "pgcode", None)
    _log.error("database does not answer", error=type(error).__name__, sqlstate=code)
    answer = {"error": "store report: the database does not answer", "hint": "try again"}
    return JSONResponse(answer, 503, {"Retry-After": str(_RETRY_AFTER_SECONDS)})


async def _gone_away(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _broken(_: Request, error: Exception) -> Response:
    _log.error("request failed", error=type(error).__name__)
    return JSONResponse({"error": "answer request: internal error"}, 500, SECURITY_HEADERS)
