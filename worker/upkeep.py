"""The embedded stack: `up` starts Postgres and Redis, starts again the one that ends, and ends both when it leaves.

An `up` that is killed cannot end them, and they are left to the next one. Neither dies with its parent, because Postgres
must end in order and cannot be told: pg_ctl stands between us, and the kernel forgets a parent's wish at each fork and at
each change of user. `doctor` says what was left.
"""

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

import structlog

from worker import embedded, stack
from worker.embedded import Service
from worker.errors import Misconfigured, Unreachable

log = structlog.get_logger()

#: Seconds before each start of a service that ends again and again; after the last of them it is given up.
_PAUSES: Final = (0.0, 0.5, 1.0, 2.0, 5.0)
#: A service that lived this long, in seconds, is not one that ends again and again.
_SETTLED_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Stack:
    """What was started: the environment in which a daemon finds it, and what keeps it alive."""

    environment: Mapping[str, str]
    keep: Callable[[], None]


@contextmanager
def start(state_dir: Path, *, shared: Mapping[str, str], key_of: Callable[[Mapping[str, str]], str]) -> Iterator[Stack]:
    """Postgres and, where a program is found, Redis, in a folder that is reserved; ended at the end. Raises Misconfigured.

    `shared` are settings that other terminals must have alike; `key_of` answers the key's fingerprint, given where Postgres is.
    """
    if (redis_pid := stack.left_over(state_dir, reserved=True).get("redis")) is not None:
        # Because our Redis has another password; Postgres takes its own leftover over by itself.
        with suppress(OSError):
            os.kill(redis_pid, signal.SIGTERM)
    stack.withdraw(state_dir)
    with ExitStack() as closing:
        postgres = embedded.start_postgres(state_dir / "postgres")
        closing.callback(postgres.stop)
        environment = {**shared, "DATABASE_URL": postgres.url.reveal()}
        key = key_of(environment)
        redis = embedded.start_redis(state_dir / "redis")
        if redis is not None:
            closing.callback(redis.stop)
            environment["REDIS_URL"] = redis.url.reveal()
        closing.callback(stack.withdraw, state_dir)
        stack.publish(state_dir, environment, key)
        yield Stack(environment, Upkeep([postgres, redis] if redis else [postgres]).look)


class Upkeep:
    """Starts each of these again once it has ended, later each time, and gives up in the end."""

    def __init__(self, services: Sequence[Service], *, pauses: Sequence[float] = _PAUSES) -> None:
        self._kept = [_Kept(service, pauses) for service in services]

    def look(self) -> None:
        """Ask each of them, in no time unless one must be started. Raises Unreachable for one that does not stay."""
        for kept in self._kept:
            kept.look()


class _Kept:
    def __init__(self, service: Service, pauses: Sequence[float]) -> None:
        self._service = service
        self._pauses = pauses
        self._born = monotonic()
        self._starts = 0
        self._due: float | None = None

    def look(self) -> None:
        if not self._service.ended():
            return
        if self._due is None:
            self._due = self._next()
        if monotonic() >= self._due:
            self._start()

    def _next(self) -> float:
        """When to start it. Raises Unreachable when that was tried often enough."""
        if monotonic() - self._born > _SETTLED_S:
            self._starts = 0
        if self._starts == len(self._pauses):
            name, log_file = self._service.name, self._service.log
            raise Unreachable(f"keep stack: its {name} ended {self._starts + 1} times in a row", hint=f"read {log_file}")
        return monotonic() + self._pauses[self._starts]

    def _start(self) -> None:
        self._starts += 1
        self._due = None
        try:
            self._service.start()
        except Misconfigured as error:
            log.warning("service does not start", service=self._service.name, reason=error.message, hint=error.hint)
        else:
            log.warning("service ended and was started again", service=self._service.name, start=self._starts)
        self._born = monotonic()
