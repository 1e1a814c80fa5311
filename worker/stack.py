"""The embedded stack's folder: where other terminals find what `up` started (worker/upkeep.py), and what a killed one left."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Final

from config import settings as environment
from config.settings import Settings
from worker.domain import Secret
from worker.errors import Misconfigured

_FILE: Final = "stack.json"
#: Held by whoever runs the stack. The kernel frees it however that process ends, where a pid may be somebody else's by now.
_LOCK: Final = "stack.lock"
#: Looks at a held lock before it counts as held, because another terminal's question holds it for an instant.
_LOOKS: Final = 10
_LOOK_S: Final = 0.05
_KEY: Final = "key"
_PID_FILES: Final = {"postgres": "postgres/postmaster.pid", "redis": "redis/redis.pid"}


def running(state_dir: Path) -> Mapping[str, str]:
    """The environment of the stack that runs in this folder, empty when none does."""
    found = _read(state_dir) if _is_held(state_dir) else {}
    told = found.get("environment")
    return {str(name): str(value) for name, value in told.items()} if isinstance(told, dict) else {}


def settings() -> Settings:
    """This process's settings; without DATABASE_URL those of the stack that runs in its state folder, where it set none itself.

    The environment stays as it is, because a program that only rings for jobs has one of its own. Raises as `load` does.
    """
    own = environment.load()
    if own.database_url is not None:
        return own
    found = {name: value for name, value in running(own.state_dir).items() if not os.environ.get(name)}
    return environment.load({**os.environ, **found}) if found else own


def left_over(state_dir: Path, *, reserved: bool = False) -> Mapping[str, int]:
    """Service → pid of what a killed `up` left running here, empty while a stack runs; `reserved`: the folder is the caller's."""
    if not reserved and _is_held(state_dir):
        return {}
    return {service: pid for service, file in _PID_FILES.items() if (pid := _pid_in(state_dir / file)) is not None}


def key_of_running(state_dir: Path) -> str | None:
    """The fingerprint of the key that the running stack works with, None when none runs."""
    found = _read(state_dir).get(_KEY) if _is_held(state_dir) else None
    return str(found) if found else None


def publish(state_dir: Path, found: Mapping[str, str], key: str) -> None:
    """Let other terminals find what runs here, by these variables; `key` is the key's fingerprint."""
    _write(state_dir, {"environment": found, _KEY: key, "pid": os.getpid()})


def withdraw(state_dir: Path) -> None:
    """Nobody is to find what ends now, or what ended before."""
    (state_dir / _FILE).unlink(missing_ok=True)


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


def database_url(found: Mapping[str, str]) -> Secret:
    """The stack's own Postgres."""
    return Secret(found["DATABASE_URL"])


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


def _pid_in(file: Path) -> int | None:
    """The process that the file names, when it lives and works in the file's folder: the number may be somebody else's by now."""
    try:
        pid = int(file.read_text().split()[0])
        # By its working folder, because Redis writes over its own command line.
        return pid if Path(f"/proc/{pid}/cwd").resolve(strict=True) == file.parent.resolve() else None
    except (OSError, ValueError, IndexError):
        return None
