"""Plays the agents of the in-memory backend, because a job that waits for a registration needs somebody who registers."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx

from worker.backends.memory_world import Container, Host, World
from worker.backends.names import WORKSPACE, config_volume
from worker.backends.tar import TOKEN_FILE
from worker.domain import container_name
from worker.errors import Unreachable

_LOOK_EACH_S: Final = 0.2
_AGAIN_S: Final = 1.0
_CALL_S: Final = 5.0


class Agents:
    """A daemon thread that registers every running container of `host` at `platform_url` and sends its heartbeats.

    One process at a time plays them all; when it dies, the next one that is asked takes over. The token is read from the
    container's volume at each call, as the real runtime does.
    """

    def __init__(self, host: Host, platform_url: str, *, heartbeat_s: float = 30.0) -> None:
        self._host = host
        self._platform_url = platform_url.rstrip("/")
        self._heartbeat_s = heartbeat_s
        self._stopping = threading.Event()
        self._look = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._born: dict[str, float] = {}  #: container id → when it was first seen here
        self._due: dict[str, float] = {}  #: container id → when its next call is due, monotonic seconds
        self._registered: set[str] = set()

    def wake(self) -> None:
        """Look at the world now; starts the thread where there is none (also in a forked child)."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._stopping.clear()
                self._thread = threading.Thread(target=self._play, name="memory-agents", daemon=True)
                self._thread.start()
        self._look.set()

    def close(self) -> None:
        """Stop playing; another process may take over."""
        self._stopping.set()
        self._look.set()
        with self._lock:
            if self._thread is not None:
                self._thread.join(timeout=2 * _CALL_S)
                self._thread = None

    def _play(self) -> None:
        with httpx.Client(timeout=_CALL_S, trust_env=False) as client:
            while not self._stopping.is_set():
                with self._stage() as mine:
                    while mine and not self._stopping.is_set():
                        self._round(client)
                        self._pause()
                self._pause()

    def _pause(self) -> None:
        self._look.wait(_LOOK_EACH_S)
        self._look.clear()

    @contextmanager
    def _stage(self) -> Iterator[bool]:
        """Whether this process plays. The kernel gives the lock back when the process that has it dies."""
        path = self._host.path.with_name(f"{self._host.path.name}.agents.lock")
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(lock)

    def _round(self, client: httpx.Client) -> None:
        try:
            world = self._host.now()
        except Unreachable:
            return
        for container in [each for each in world.containers.values() if each.running]:
            if self._stopping.is_set():
                return
            if self._due.get(container.id, 0.0) <= time.monotonic():
                self._turn(client, world, container)

    def _turn(self, client: httpx.Client, world: World, container: Container) -> None:
        """One call of one agent: its registration until that is accepted, then heartbeats until one is not."""
        registered = container.id in self._registered
        accepted = self._beat(client, world, container) if registered else self._register(client, world, container)
        (self._registered.add if accepted else self._registered.discard)(container.id)
        self._due[container.id] = time.monotonic() + (self._heartbeat_s if accepted else _AGAIN_S)

    def _register(self, client: httpx.Client, world: World, container: Container) -> bool:
        self._born.setdefault(container.id, time.monotonic())
        workspace_id = container.labels[WORKSPACE]
        url = f"http://{container_name(workspace_id)}:8000"
        card = {"name": "simulated", "version": "1.0.0", "url": url, "capabilities": {}, "skills": []}
        return self._post(client, world, container, "register", {"id": workspace_id, "url": url, "agent_card": card})

    def _beat(self, client: httpx.Client, world: World, container: Container) -> bool:
        uptime = int(time.monotonic() - self._born[container.id])
        body = {"workspace_id": container.labels[WORKSPACE], "error_rate": 0.0, "sample_error": "", "active_tasks": 0}
        return self._post(client, world, container, "heartbeat", {**body, "current_task": "", "uptime_seconds": uptime})

    def _post(self, client: httpx.Client, world: World, container: Container, call: str, body: dict[str, Any]) -> bool:
        volume = world.volumes.get(config_volume(container.labels[WORKSPACE]))
        token = volume.files.get(TOKEN_FILE) if volume else None
        headers = {"Authorization": f"Bearer {token.text.strip()}"} if token else {}
        try:
            answer = client.post(f"{self._platform_url}/registry/{call}", json=body, headers=headers)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK
