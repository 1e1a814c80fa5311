"""Single questions to and effects on one Docker engine, each with its deadline and its errors translated."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import requests
from docker import APIClient
from docker.errors import APIError

from worker.backends.docker_client import QUICK_S, SLOW_S, Clients
from worker.backends.docker_errors import CLIENT_ERRORS, error_of, is_conflict, is_gone, translated
from worker.backends.docker_network import ensure_network, found_network
from worker.backends.docker_state import url_of
from worker.errors import BackendBusy, Retryable

#: Seconds: a removal that the engine accepted is looked after for so long, and a fresh container's port.
_GONE_S: Final = 30.0
_PORT_S: Final = 1.5
_LOOK_EACH_S: Final = 0.1


class DockerEngine:
    """The engine at `base_url`, else at DOCKER_HOST, else at the local socket. It knows containers, not workspaces."""

    def __init__(self, base_url: str | None, *, starts_at_once: int) -> None:
        self._clients = Clients(base_url)
        self._starts = threading.BoundedSemaphore(starts_at_once)
        self._networking = threading.Lock()
        self._cores: int | None = None

    def version(self) -> str:
        """The engine's own version."""
        with self._client("ask engine") as client:
            return str(client.version()["Version"])

    def cores(self) -> int:
        """How many cores its host has; asked once, because they are what the engine began with."""
        if self._cores is None:
            with self._client("ask engine") as client:
                self._cores = int(client.info()["NCPU"])
        return self._cores

    def close(self) -> None:
        """Close the connections of every thread."""
        self._clients.close()

    def network(self, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
        """The network of that name, made when it is missing."""
        with self._networking, self._client("reach engine") as client:
            return ensure_network(client, name, labels)

    def found_network(self, name: str) -> dict[str, Any] | None:
        """The network of that name, None where there is none yet."""
        with self._client("reach engine") as client:
            return found_network(client, name)

    @property
    def address(self) -> str:
        """Where the engine is asked; no credential is ever part of it."""
        return self._clients.address

    # ---- containers

    def container(self, name: str) -> dict[str, Any] | None:
        """The engine's description; None on its own 404 and on nothing else."""
        try:
            found: dict[str, Any] = self._clients.get().inspect_container(name)
        except CLIENT_ERRORS as error:
            if is_gone(error):
                return None
            raise error_of("inspect container", error) from error
        return found

    def listed(self, labels: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Containers, also those that never started, and volumes that bear all of `labels` (`name=value`)."""
        with self._client("list containers") as client:
            containers = client.containers(all=True, filters={"label": list(labels)})
            volumes = client.volumes(filters={"label": list(labels)})["Volumes"] or []
        return containers, volumes

    def on_host_network(self, label: str) -> list[str]:
        """Ids of all containers that run on the host's own network and bear `label` (`name=value`)."""
        with self._client("list containers") as client:
            return [found["Id"] for found in client.containers(filters={"label": [label], "network": ["host"]})]

    def create(self, name: str, config: Mapping[str, Any], *, platform: str) -> str:
        """Answers the container's id."""
        with self._client("create container", SLOW_S) as client:
            make: Callable[..., dict[str, Any]] = client.create_container_from_config
            return str(make(config, name, platform=platform or None)["Id"])

    def lies(self, container_id: str, path: str) -> bool:
        """Whether anything is at `path` in the container, running or not."""
        with self._client("look for file") as client:
            # The library has no call for HEAD, and its GET would read whatever a tenant has put there.
            address = f"{client.base_url}/v{client.api_version}/containers/{container_id}/archive"
            answer = client.head(address, params={"path": path}, timeout=client.timeout)
            if not answer.ok and answer.status_code != requests.codes.not_found:
                raise APIError("the engine could not look", response=answer)
            return answer.ok

    def put(self, container_id: str, folder: str, archive: bytes) -> None:
        """Unpack `archive` in `folder` of the container, running or not."""
        with self._client("put files") as client:
            client.put_archive(container_id, folder, archive)

    def start(self, container_id: str) -> None:
        """Start it when there is room: beyond a few starts at once an engine only gets slower."""
        if not self._starts.acquire(timeout=SLOW_S):
            raise BackendBusy("start container: too many starts at once on this host", hint="it is tried again by itself")
        try:
            with self._client("start container", SLOW_S) as client:
                client.start(container_id)
        finally:
            self._starts.release()

    def published(self, container_id: str) -> str | None:
        """The address on this host; None when the process ended at once, which inspecting it will tell."""
        end = time.monotonic() + _PORT_S
        while True:
            found = self.container(container_id)
            url = url_of(found) if found else None
            if url or found is None or time.monotonic() > end:
                return url
            threading.Event().wait(_LOOK_EACH_S)

    def remove(self, container_id: str) -> None:
        """Gone when this returns. One call kills and removes, because a restart policy revives what is only stopped."""
        try:
            self._clients.get(SLOW_S).remove_container(container_id, v=True, force=True)
        except CLIENT_ERRORS as error:
            if is_gone(error):
                return
            # A conflict says that somebody else's removal is under way: then it is waited for just the same.
            if not is_conflict(error):
                raise error_of("remove container", error) from error
        end = time.monotonic() + _GONE_S
        while self.container(container_id) is not None:
            if time.monotonic() > end:
                raise Retryable("remove container: the engine is still at it", hint="it is tried again by itself")
            threading.Event().wait(_LOOK_EACH_S)

    def logs(self, container_id: str, tail: int) -> bytes:
        """The last `tail` lines of both streams."""
        with self._client("read logs") as client:
            output: bytes = client.logs(container_id, tail=tail)
        return output

    # ---- volumes

    def create_volume(self, name: str, labels: Mapping[str, str]) -> Mapping[str, str]:
        """Answers the labels of the volume that bears the name now: an older one keeps its own."""
        with self._client("create volume") as client:
            return client.create_volume(name, labels=dict(labels)).get("Labels") or {}

    def volume_labels(self, name: str) -> Mapping[str, str] | None:
        """The volume's labels; None when there is no such volume."""
        try:
            return self._clients.get().inspect_volume(name).get("Labels") or {}
        except CLIENT_ERRORS as error:
            if is_gone(error):
                return None
            raise error_of("inspect volume", error) from error

    def remove_volume(self, name: str) -> Sequence[str]:
        """Answers who still holds it, by name; empty when it is gone."""
        try:
            self._clients.get().remove_volume(name)
        except CLIENT_ERRORS as error:
            if is_gone(error):
                return ()
            if not is_conflict(error):
                raise error_of("remove volume", error) from error
            with self._client("list containers") as client:
                holders = client.containers(all=True, filters={"volume": name})
            # Nobody is listed when the holder went between the two calls: the volume's own name says that it is still there.
            return [name_of(holder) for holder in holders] or [name]
        return ()

    @contextmanager
    def _client(self, action: str, deadline: int = QUICK_S) -> Iterator[APIClient]:
        with translated(action):
            yield self._clients.get(deadline)


def name_of(listed: Mapping[str, Any]) -> str:
    """A listed container's name; one under removal is listed without, then its id stands for it."""
    return str((listed.get("Names") or [listed["Id"]])[0]).removeprefix("/")
