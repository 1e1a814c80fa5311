"""The embedded stack's folder: what `up` started, where other terminals find it, and what a killed one left behind."""

import fcntl
import json
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Final

from worker import embedded
from worker.domain import Secret
from worker.errors import Misconfigured

_FILE: Final = "stack.json"
#: Held by whoever runs the stack. The kernel frees it however that process ends, where a pid may be somebody else's by now.
_LOCK: Final = "stack.lock"
#: Looks at a held lock before it counts as held, because another terminal's question holds it for an instant.
_LOOKS: Final = 10
_LOOK_S: Final = 0.05
_KEY: Final = "key"


def running(state_dir: Path) -> Mapping[str, str]:
    """The environment of the stack that runs in this folder, empty when none does."""
    found = _read(state_dir) if _is_held(state_dir) else {}
    environment = found.get("environment")
    return {str(name): str(value) for name, value in environment.items()} if isinstance(environment, dict) else {}


def key_of_running(state_dir: Path) -> str | None:
    """The fingerprint of the key that the running stack works with, None when none runs."""
    found = _read(state_dir).get(_KEY) if _is_held(state_dir) else None
    return str(found) if found else None


@contextmanager
def reserved(state_dir: Path) -> Iterator[None]:
    """The folder is ours. Raises Misconfigured when a stack runs there already, or when it cannot be used."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        reason = (error.strerror or "it cannot be used").lower()
        hint = "point MOLECULE_WORKER_STATE_DIR at a folder of this user"
        raise Misconfigured(f"use state folder {state_dir}: {reason}", hint=hint) from error
    ours = [descriptor]
    # Because a child that outlives its parent by a moment must not keep the next `up` out.
    os.register_at_fork(after_in_child=lambda: os.close(ours.pop()) if ours else None)
    try:
        if not _locked(descriptor):
            hint = "use it from here, stop it, or set MOLECULE_WORKER_STATE_DIR to another folder"
            raise Misconfigured(f"start stack: one runs already in {state_dir}", hint=hint)
        yield
    finally:
        ours.clear()
        os.close(descriptor)


@contextmanager
def start(state_dir: Path, *, shared: Mapping[str, str], key: str) -> Iterator[Mapping[str, str]]:
    """Postgres and, where a program is found, Redis, in a folder that is reserved; ended at the end. Raises Misconfigured.

    `shared` are settings that other terminals must have alike, `key` is the key's fingerprint.
    """
    _end_leftover(state_dir)
    (state_dir / _FILE).unlink(missing_ok=True)
    with ExitStack() as closing:
        postgres = embedded.start_postgres(state_dir / "postgres")
        closing.callback(postgres.stop)
        redis = embedded.start_redis(state_dir / "redis")
        if redis is not None:
            closing.callback(redis.stop)
        environment = {**shared, "DATABASE_URL": postgres.url.reveal()}
        if redis is not None:
            environment["REDIS_URL"] = redis.url.reveal()
        closing.callback((state_dir / _FILE).unlink, missing_ok=True)
        _write(state_dir, {"environment": environment, _KEY: key, "pid": os.getpid(), "redis_pid": redis.pid if redis else None})
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


def _locked(descriptor: int) -> bool:
    for _ in range(_LOOKS):
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        Event().wait(_LOOK_S)
    return False


def _is_held(state_dir: Path) -> bool:
    try:
        descriptor = os.open(state_dir / _LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _end_leftover(state_dir: Path) -> None:
    """A stack that was killed leaves its Redis behind; Postgres finds its own leftover by itself."""
    pid = _read(state_dir).get("redis_pid")
    if not isinstance(pid, int):
        return
    with suppress(OSError):
        # By its working folder, because Redis writes over its own command line.
        if Path(f"/proc/{pid}/cwd").resolve() == (state_dir / "redis").resolve():
            os.kill(pid, signal.SIGTERM)
