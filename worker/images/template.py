"""Which commit of a template is the current one: one call to Gitea, and nothing believed that it was not asked for."""

import ipaddress
import json
import re
import socket
import ssl
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import Final, NoReturn
from urllib.parse import urlsplit

import httpx

from worker.domain import Secret
from worker.errors import Misconfigured, Retryable, Unreachable

BODY_LIMIT: Final = 64 * 1024  #: bytes of an answer; a branch is about 2 KiB
CALL_LIMIT_S: Final = 30.0  #: seconds for the whole call
_SETTING = "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX"
_SHA = re.compile(r"[0-9a-f]{40}\Z")
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")
_TOKEN = re.compile(r"[!-~]+\Z")


@dataclass(frozen=True, slots=True)
class Repositories:
    """The prefix taken apart: `{scheme}://{netloc}{base}/{org}/{name}<runtime>`."""

    scheme: str
    netloc: str
    base: str  #: path of a Gitea that does not live at the root, else ""
    org: str
    name: str

    def branch_url(self, runtime: str) -> str:
        """Gitea's API for the head of main."""
        return f"{self.scheme}://{self.netloc}{self.base}/api/v1/repos/{self.org}/{self.name}{runtime}/branches/main"

    def clone_url(self, runtime: str) -> str:
        """What git fetches from; it never holds a credential."""
        return f"{self.scheme}://{self.netloc}{self.base}/{self.org}/{self.name}{runtime}.git"


def parse_prefix(prefix: str) -> Repositories:
    """Take the prefix apart. Raises Misconfigured without showing it, because it may hold a password.

    https only, save for a loopback host; no user, query or fragment; an organisation and the start of a name.
    """
    if any(mark in prefix for mark in "@?#%\\") or not prefix.isprintable() or " " in prefix:
        _refuse("it must not hold a user, a query, a fragment or an escape")
    try:
        parts = urlsplit(prefix)
        host, _ = parts.hostname, parts.port
    except ValueError:
        _refuse("it is not a URL")
    if parts.scheme not in {"https", "http"} or not host:
        _refuse("it is not an https URL")
    if parts.scheme == "http" and not _is_loopback(host):
        _refuse("http is for loopback hosts only")
    segments = parts.path.split("/")[1:]
    if len(segments) < 2 or not all(_SEGMENT.match(segment) for segment in segments):  # noqa: PLR2004  organisation, name
        _refuse("it must end in an organisation and the start of a repository's name")
    *base, org, name = segments
    return Repositories(parts.scheme, parts.netloc, "".join(f"/{segment}" for segment in base), org, name)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refuse(why: str) -> NoReturn:
    raise Misconfigured(f"read {_SETTING}: {why}", hint="https://<host>/<organisation>/<start of the name>", code="template_prefix")


class Templates:
    """The template repositories of one installation. Thread-safe; close it at the end."""

    def __init__(self, prefix: str, token: Secret | None, *, limit_s: float = CALL_LIMIT_S) -> None:
        if token and not _TOKEN.match(token.reveal()):
            raise Misconfigured(
                "read MOLECULE_GITEA_TOKEN: it holds a character that no token has", hint="copy it again, without blanks"
            )
        self.repositories = parse_prefix(prefix)
        self.token = token or None
        self._limit_s = limit_s
        self._guard = Lock()
        self._client: httpx.Client | None = None

    def close(self) -> None:
        """Give back the connections."""
        if self._client is not None:
            self._client.close()

    def head_sha(self, runtime: str) -> str:
        """The commit that main points at: 40 hex digits. The runtime must have passed the allow-list.

        Raises Misconfigured (not mirrored, not allowed, redirected), Unreachable (no answer) or Retryable (nonsense).
        """
        # identity, because a compressed body could be small on the wire and endless in memory
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if self.token:
            headers["Authorization"] = f"token {self.token.reveal()}"
        try:
            with self._opened().stream("GET", self.repositories.branch_url(runtime), headers=headers) as response:
                _refuse_status(response.status_code, runtime)
                body = _bounded(response, monotonic() + self._limit_s)
        except httpx.TransportError as error:
            raise Unreachable(
                f"look up template of {runtime}: {_why(error)}", hint="is the git server up, and reachable from here?"
            ) from error
        return _commit_id(body, runtime)

    def _opened(self) -> httpx.Client:
        """Made by the first question, because the certificates that it loads cost every idle process 5 MB."""
        with self._guard:
            if self._client is None:
                # trust_env off, because a ~/.netrc or a proxy of the environment would see or change what we send.
                self._client = httpx.Client(timeout=self._limit_s, follow_redirects=False, trust_env=False)
            return self._client


def _refuse_status(status: int, runtime: str) -> None:
    """Raise what the status means, from the table; 200 passes."""
    what = f"look up template of {runtime}"
    if status == httpx.codes.OK:
        return
    if status == httpx.codes.NOT_FOUND:
        raise Misconfigured(
            f"{what}: the template of {runtime} is not mirrored on the git server",
            hint=f"mirror it, or point {_SETTING} at a server that has it; a private one needs MOLECULE_GITEA_TOKEN",
            code="template_not_mirrored",
        )
    if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        raise Misconfigured(
            f"{what}: the git server refused ({status})",
            hint="set MOLECULE_GITEA_TOKEN to a token that may read it",
            code="template_denied",
        )
    if status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise Unreachable(f"{what}: the git server answered {status}", hint="it may pass; look at the git server")
    raise Misconfigured(
        f"{what}: the git server answered {status}", hint=f"does {_SETTING} name the right server?", code="template_answer"
    )


def _bounded(response: httpx.Response, end: float) -> bytes:
    body = b""
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > BODY_LIMIT:
            raise Retryable(
                "look up template: the answer is larger than 64 KiB", hint="is that a Gitea server?", code="template_answer"
            )
        if monotonic() > end:
            raise Unreachable("look up template: the answer takes too long", hint="look at the git server")
    return body


def _commit_id(body: bytes, runtime: str) -> str:
    try:
        sha = json.loads(body)["commit"]["id"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Retryable(
            f"look up template of {runtime}: the answer is not a branch", hint="is that a Gitea server?", code="template_answer"
        ) from error
    if not isinstance(sha, str) or not _SHA.match(sha):
        raise Retryable(
            f"look up template of {runtime}: the commit id is not 40 hex digits",
            hint="is that a Gitea server?",
            code="template_answer",
        )
    return sha


def _why(error: BaseException) -> str:
    """The kind of silence, in a word; the peer's own text stays in the cause."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return "TLS failed"
        if isinstance(seen, socket.gaierror):
            return "its name does not resolve"
        if isinstance(seen, httpx.TimeoutException):
            return "no answer in time"
        seen = seen.__cause__ or seen.__context__
    return "no connection"
