"""The embedded stack's folder: what `up` started, where other terminals find it, and what a killed one left behind."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from worker import embedded
from worker.domain import Secret
from worker.errors import Misconfigured

_FILE: Final = "stack.json"

#: What the stack decides for every process that uses it.
_NAMES: Final = ("DATABASE_URL", "REDIS_URL", "MOLECULE_BACKEND")


def running(state_dir: Path) -> Mapping[str, str]:
    """The environment of the stack that runs in this folder, empty when none does."""
    found = _read(state_dir)
    if not _lives(found.get("pid")):
        return {}
    return {name: str(found[name]) for name in _NAMES if found.get(name)}


@contextmanager
def start(state_dir: Path, *, backend: str) -> Iterator[Mapping[str, str]]:
    """Postgres and, where a program is found, Redis; ended at the end. Raises Misconfigured when one runs there already."""
    if running(state_dir):
        raise Misconfigured(f"start stack: one runs already in {state_dir}", hint="stop it, or set MOLECULE_WORKER_STATE_DIR")
    state_dir.mkdir(parents=True, exist_ok=True)
    _end_leftover(state_dir)
    with ExitStack() as closing:
        postgres = embedded.start_postgres(state_dir / "postgres")
        closing.callback(postgres.stop)
        redis = embedded.start_redis(state_dir / "redis")
        if redis is not None:
            closing.callback(redis.stop)
        environment = {"DATABASE_URL": postgres.url.reveal(), "MOLECULE_BACKEND": backend}
        if redis is not None:
            environment["REDIS_URL"] = redis.url.reveal()
        closing.callback((state_dir / _FILE).unlink, missing_ok=True)
        _write(state_dir, {**environment, "pid": os.getpid(), "redis_pid": redis.pid if redis else None})
        yield environment


def database_url(environment: Mapping[str, str]) -> Secret:
    """The stack's own Postgres."""
    return Secret(environment["DATABASE_URL"])


def _read(state_dir: Path) -> dict[str, object]:
    try:
        found = json.loads((state_dir / _FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(state_dir: Path, content: Mapping[str, object]) -> None:
    """At once and for us alone: it holds the password of Redis."""
    fresh = state_dir / f"{_FILE}.{os.getpid()}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
    fresh.replace(state_dir / _FILE)


def _end_leftover(state_dir: Path) -> None:
    """A stack that was killed leaves its Redis behind; Postgres finds its own leftover by itself."""
    pid = _read(state_dir).get("redis_pid")
    if not isinstance(pid, int):
        return
    with suppress(OSError):
        if str(state_dir).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)


def _lives(pid: object) -> bool:
    if not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
