"""The platform's own keys in Redis: a convenience for its readers, never the truth, so a failure is one log line a minute.

`ws:<id>`, its address and its internal address expire by themselves; the platform listens to the first one's
expiry, hence nothing else may ever be written under `ws:<id>`. Whatever a flush loses, the next heartbeat writes again.
"""

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from threading import Lock
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self

import structlog

from worker.domain import Secret
from worker.errors import Misconfigured
from worker.store.events import Event
from worker.store.lean_redis import NoBackoff, Pipeline, Redis, RedisError, Retry

ONLINE_SECONDS: Final = 180
URL_SECONDS: Final = 300
CHANNEL: Final = "events:broadcast"
#: Each of connecting, sending and reading: a request must not wait for what it does not need.
_TIMEOUT_SECONDS: Final = 0.2
_COMPLAIN_EVERY_SECONDS: Final = 60.0

_log = structlog.get_logger()


class Cache:
    """Best effort and nothing else: no call raises because of Redis. With None as address it does nothing at all.

    Made after the process has forked; safe to share between threads. Raises Misconfigured for an address that is none.
    """

    def __init__(self, url: Secret | None) -> None:
        self._redis = None if url is None else _open(url)
        self._complaint = Lock()
        self._quiet_until = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        if self._redis is not None:
            self._redis.close()

    def answers(self) -> bool:
        """Whether Redis can be used right now; the question of `doctor`."""
        try:
            return self._redis is not None and bool(self._redis.ping())
        except (RedisError, OSError):
            return False

    def mark_online(self, workspace_id: str, url: str | None, internal_url: str | None) -> None:
        """It answers, and there. An address that is None keeps whatever is cached."""

        def write(pipeline: Pipeline) -> None:
            pipeline.set(f"ws:{workspace_id}", "online", ex=ONLINE_SECONDS)
            for name, address in (("url", url), ("internal_url", internal_url)):
                if address:
                    pipeline.set(f"ws:{workspace_id}:{name}", address, ex=URL_SECONDS)

        self._attempt(write)

    def publish(self, events: Iterable[Event]) -> None:
        """Tell the platform's listeners. After the commit only, because nobody can take a message back."""
        messages = [_message(event) for event in events]

        def write(pipeline: Pipeline) -> None:
            for message in messages:
                pipeline.publish(CHANNEL, message)

        if messages:
            self._attempt(write)

    def clear(self, workspace_id: str) -> None:
        """No reader finds the workspace here any more."""
        self._attempt(lambda pipeline: pipeline.delete(*(f"ws:{workspace_id}{end}" for end in ("", ":url", ":internal_url"))))

    def _attempt(self, write: Callable[[Pipeline], object]) -> None:
        if self._redis is None:
            return
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                write(pipeline)
                pipeline.execute()
        except (RedisError, OSError) as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        with self._complaint:
            if monotonic() < self._quiet_until:
                return
            self._quiet_until = monotonic() + _COMPLAIN_EVERY_SECONDS
        # The name of the error only, because its text may hold the address.
        _log.warning("cache does not answer", error=type(error).__name__, hint="nothing is lost: heartbeats rebuild it")


def _open(url: Secret) -> Redis:
    # No retry, because the next heartbeat is one.
    budget = {"socket_timeout": _TIMEOUT_SECONDS, "socket_connect_timeout": _TIMEOUT_SECONDS, "retry": Retry(NoBackoff(), 0)}
    try:
        return Redis.from_url(url.reveal(), **budget)
    except ValueError as error:
        raise Misconfigured("read REDIS_URL: it is not a Redis URL", hint="redis://:password@host:6379/0") from error


def _message(event: Event) -> str:
    body: dict[str, Any] = {
        "event": event.event_type,
        "workspace_id": event.workspace_id,
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "payload": dict(event.payload),
    }
    return json.dumps(body, separators=(",", ":"))
