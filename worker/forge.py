"""A small git server for one machine: the embedded stack's stand-in for Gitea, real git over HTTP and the one API call beside it.

It listens on loopback only, serves reads only, and can be told to misbehave, because the failures of a real one have to be met.
"""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Lock, Thread
from typing import Final
from urllib.parse import urlsplit

from worker.domain import Secret
from worker.errors import Misconfigured

ORGANISATION: Final = "molecule-ai"
NAME: Final = "molecule-ai-workspace-template-"

_BRANCH = re.compile(r"/api/v1/repos/([\w-]+)/([\w-]+)/branches/(\w+)\Z", re.ASCII)
_GIT = re.compile(r"/([\w-]+)/([\w-]+)\.git/(info/refs|git-upload-pack)\Z", re.ASCII)
_AUTHOR = "Molecule <templates@molecule.invalid>"
#: A fixed time, so that the same files are the same commit and the image's cache holds over restarts.
_WHEN = "2026-01-01T00:00:00Z"
_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Fault:
    """What the server answers instead of the truth, to the API or to git."""

    on: str  #: api | git
    status: int = 200
    body: bytes = b""
    location: str = ""
    delay_s: float = 0.0
    #: pass the truth on after the delay
    then_serve: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came. No header is kept: they may hold a token."""

    method: str
    path: str

    @property
    def on(self) -> str:
        """Which half it was for: api | git."""
        return "api" if self.path.startswith("/api/") else "git"


class Forge:
    """Bare repositories below `root`, served on a loopback port. `close` ends it; the repositories stay."""

    def __init__(self, root: Path, *, token: Secret | None = None, port: int = 0) -> None:
        self._root = root
        self._token = token
        self._closing = Event()
        self._lock = Lock()
        self._requests: list[Request] = []
        self.fault: Fault | None = None
        root.mkdir(parents=True, exist_ok=True)
        self._server = _Server(("127.0.0.1", port), self)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="forge", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The loopback port."""
        return int(self._server.server_address[1])

    @property
    def prefix(self) -> str:
        """What MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX must be for this server."""
        return f"http://127.0.0.1:{self.port}/{ORGANISATION}/{NAME}"

    def close(self) -> None:
        """Stop listening and end every request."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def repository(self, runtime: str) -> Path:
        """Where the bare repository of a runtime's template lies."""
        return self._root / ORGANISATION / f"{NAME}{runtime}.git"

    def publish(self, runtime: str, folder: Path) -> str:
        """Make the folder's files the head of main, and answer the commit: the same one when nothing changed."""
        bare = self.repository(runtime)
        if not bare.exists():
            bare.mkdir(parents=True)
            _git(bare, "init", "--quiet", "--bare", "--template=", "--initial-branch=main")
        with TemporaryDirectory(dir=bare) as index:
            environment = {"GIT_WORK_TREE": str(folder), "GIT_INDEX_FILE": str(Path(index) / "index")}
            _git(bare, "add", "--all", "--force", ".", cwd=folder, environment=environment)
            tree = _git(bare, "write-tree", environment=environment)
        return self.commit(runtime, tree)

    def commit(self, runtime: str, tree: str) -> str:
        """Move main on to a commit of that tree; the head itself when it has that tree already."""
        bare = self.repository(runtime)
        head = _git(bare, "for-each-ref", "--format=%(objectname) %(tree)", "refs/heads/main").split()
        if head and head[1] == tree:
            return head[0]
        parents = ("-p", head[0]) if head else ()
        sha = _git(bare, "commit-tree", *parents, "-m", "Publish template", tree)
        _git(bare, "update-ref", "refs/heads/main", sha)
        return sha

    def head(self, runtime: str) -> str | None:
        """The commit of main, None when there is no such repository."""
        bare = self.repository(runtime)
        return _git(bare, "for-each-ref", "--format=%(objectname)", "refs/heads/main") or None if bare.is_dir() else None

    def requests(self, on: str | None = None) -> list[Request]:
        """What was asked so far, of everything or of one half."""
        with self._lock:
            return [request for request in self._requests if on in {None, request.on}]

    @contextmanager
    def misbehaving(self, fault: Fault) -> Iterator[None]:
        """Answer with the fault until the block ends."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None

    def note(self, request: Request) -> None:
        """Remember that it was asked."""
        with self._lock:
            self._requests.append(request)

    def admits(self, header: str | None) -> bool:
        """Does this Authorization header open the door? Without a token there is none."""
        if self._token is None:
            return True
        scheme, _, value = (header or "").partition(" ")
        if scheme.lower() == "basic":
            try:
                value = base64.b64decode(value).decode().partition(":")[2]
            except ValueError:
                return False
        return scheme.lower() in {"basic", "token"} and Secret(value) == self._token

    def wait(self, seconds: float) -> None:
        """Be slow, but not longer than the server lives."""
        self._closing.wait(seconds)

    def environment(self) -> dict[str, str]:
        """For the CGI: our repositories and nothing of this process's own environment."""
        return {"GIT_PROJECT_ROOT": str(self._root), "GIT_HTTP_EXPORT_ALL": "1", **_bare_environment()}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], forge: Forge) -> None:
        self.forge = forge
        super().__init__(address, _Answer)


class _Answer(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's signature
        """Say nothing: the counter of requests is the log."""

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        request = Request(self.command, path)
        self.server.forge.note(request)
        try:
            if not self._faulty(request):
                self._serve(path)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _faulty(self, request: Request) -> bool:
        fault = self.server.forge.fault
        if fault is None or fault.on != request.on:
            return False
        self.server.forge.wait(fault.delay_s)
        if not fault.then_serve:
            self._send(fault.status, fault.body, {"Location": fault.location} if fault.location else {})
        return not fault.then_serve

    def _serve(self, path: str) -> None:
        branch, git = _BRANCH.match(path), _GIT.match(path)
        if not self.server.forge.admits(self.headers.get("Authorization")):
            self._send(401, b"", {"WWW-Authenticate": 'Basic realm="Gitea"'} if git else {})
        elif branch and self.command == "GET" and (branch[1], branch[3]) == (ORGANISATION, "main") and branch[2].startswith(NAME):
            self._send_branch(branch[2])
        elif git and git[1] == ORGANISATION:
            self._run_git(path)
        else:
            self._send(404, b'{"message":"not found"}')

    def _send_branch(self, repository: str) -> None:
        sha = self.server.forge.head(repository.removeprefix(NAME))
        if sha is None:
            self._send(404, b'{"message":"not found"}')
        else:
            self._send(200, json.dumps({"name": "main", "commit": {"id": sha}}).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _run_git(self, path: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        environment = {
            **self.server.forge.environment(),
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": urlsplit(self.path).query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(length),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        with subprocess.Popen(
            [_program(), "http-backend"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        ) as child:
            answer, _ = child.communicate(self.rfile.read(length))
        if not answer:  # and not for its exit code, because a refusal of git is an answer, too
            self._send(500, b"")
            return
        head, _, body = answer.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        status = int(headers.pop("Status", "200").split()[0])
        self._send(status, body, headers)


def make_template(source: Path, busybox: Path, folder: Path) -> Path:
    """Fill `folder` with the files of `source` and the busybox program: a template that builds where no base can be pulled."""
    shutil.copytree(source, folder, dirs_exist_ok=True, symlinks=True)
    shutil.copyfile(busybox, folder / "busybox")
    (folder / "busybox").chmod(0o755)
    return folder


def _git(bare: Path, *arguments: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    name, _, mail = _AUTHOR.rstrip(">").partition(" <")
    who = {
        f"GIT_{role}_{what}": text
        for role in ("AUTHOR", "COMMITTER")
        for what, text in (("NAME", name), ("EMAIL", mail), ("DATE", _WHEN))
    }
    done = subprocess.run(
        [_program(), f"--git-dir={bare}", *arguments],
        cwd=cwd or bare,
        env={**_bare_environment(), **who, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def _bare_environment() -> dict[str, str]:
    """Git without this user's and this machine's configuration."""
    return {
        "PATH": f"{Path(_program()).parent}{os.pathsep}{os.defpath}",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "LC_ALL": "C",
    }


def _program() -> str:
    program = shutil.which("git")
    if program is None:
        raise Misconfigured("start git server: git is not installed", hint="install git 2.31 or later")
    return program
