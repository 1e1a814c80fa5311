"""Runs workspaces on one Docker engine; every rule here answers a way in which engines lose, double or keep containers."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from worker.backends import names
from worker.backends.docker_engine import DockerEngine, name_of
from worker.backends.docker_network import gateway_of, subnets_of
from worker.backends.docker_shape import CONFIGS, Shape, container_config, mounts_of
from worker.backends.docker_state import observation_of, on_host_network
from worker.backends.mounts import Bind, refuse_directory, workspace_mount
from worker.backends.names import Owner
from worker.backends.tar import archive, refuse_path
from worker.backends.tiers import second_on_host
from worker.domain import Handle, Observation, Presence, Thing, ThingKind, WorkspaceSpec, container_name
from worker.errors import Fatal, Refused, WorkerError

_LOG_LINES: Final = 10_000
_LOG_BYTES: Final = 1 << 20

log = structlog.get_logger()


class DockerCompute:
    """`worker.ports.Compute` over the engine at `base_url`, else at DOCKER_HOST, else at the local socket.

    `shape` holds what is the same for all workspaces, `network` the network's name, `platform` is `os/arch` or empty,
    `keeps_sessions` says whether a runtime has a session volume, `starts_at_once` bounds the starts of this process.
    """

    name: str = "docker"

    def __init__(
        self,
        *,
        shape: Shape,
        network: str,
        host: str = "local",
        platform: str = "",
        keeps_sessions: Callable[[str], bool] = lambda _runtime: False,
        base_url: str | None = None,
        starts_at_once: int = 3,
    ) -> None:
        self.host = host
        self._shape = shape
        self._network = network
        self._platform = platform
        self._keeps_sessions = keeps_sessions
        self._engine = DockerEngine(base_url, starts_at_once=starts_at_once)

    # ---- the port

    def plan(self, workspace_id: str, runtime: str, tier: int) -> Sequence[Thing]:
        """See `Compute.plan`."""
        return names.planned_things(workspace_id, tier=tier, sessions=self._keeps_sessions(runtime))

    def ensure_storage(self, spec: WorkspaceSpec) -> None:
        """See `Compute.ensure_storage`. Raises Foreign when a volume of that name is not this workspace's."""
        labels = names.labels_of(spec, self._shape.installation)
        for mount in mounts_of(spec, labels, sessions=self._keeps_sessions(spec.runtime)):
            if mount["Type"] == "volume":
                found = self._engine.create_volume(mount["Source"], labels)
                self._refuse_other("create volume", spec.workspace_id, mount["Source"], found)

    def ensure_created(self, spec: WorkspaceSpec) -> str:
        """See `Compute.ensure_created`. Whatever fails after the create, the container is removed again."""
        _refuse_host_directory(spec)
        network_id = self._network_now()["Id"]
        config = container_config(
            spec,
            self._shape,
            network_id=network_id,
            sessions=self._keeps_sessions(spec.runtime),
            cores=self._engine.cores(),
        )
        self._remove_previous(spec.workspace_id)
        self.ensure_storage(spec)
        container_id = self._engine.create(container_name(spec.workspace_id), config, platform=self._platform)
        try:
            self._put_files(spec, container_id)
        except BaseException:
            self._abandon(container_id)
            raise
        return container_id

    def ensure_started(self, workspace_id: str) -> Handle:
        """See `Compute.ensure_started`. A container that can never be started is removed: nothing half-made stays."""
        name = container_name(workspace_id)
        found = self._engine.container(name)
        if found is None:
            raise Refused("start container: it is gone", hint="somebody removed it; retry the job", code="container_gone")
        self._refuse_other("start container", workspace_id, name, _labels(found))
        container_id = found["Id"]
        if on_host_network(found):
            self._refuse_second(container_id)
        try:
            self._engine.start(container_id)
        except Fatal:
            # Not for what may pass: the next try starts this same container, which nobody would make again for it.
            self._abandon(container_id)
            raise
        url = self._engine.published(container_id)
        log.info("container started", workspace=workspace_id, container=container_id[:12], host=self.host)
        return Handle(container_id, url)

    def inspect(self, workspace_id: str) -> Observation:
        """See `Compute.inspect`: gone on the engine's own answer that settles it and on nothing else."""
        try:
            found = self._engine.container(container_name(workspace_id))
        except WorkerError as error:
            log.warning("container unknown", workspace=workspace_id, host=self.host, code=error.code)
            return Observation(Presence.UNKNOWN, reason="unanswered")
        if found is None:
            return Observation(Presence.GONE)
        owner = self._owner(workspace_id, container_name(workspace_id), _labels(found))
        if owner is Owner.SIBLING:
            # A name is unique, so while the other workspace has it this one has no container: as good as a 404.
            return Observation(Presence.GONE)
        if owner is not Owner.OURS:
            return Observation(Presence.UNKNOWN, reason="foreign")
        return observation_of(found)

    def destroy(self, workspace_id: str) -> None:
        """See `Compute.destroy`. Raises Foreign, and touches nothing, when the name belongs to somebody else."""
        name = container_name(workspace_id)
        found = self._engine.container(name)
        if found is None:
            return
        if self._owner(workspace_id, name, _labels(found)) is Owner.SIBLING:
            return
        self._refuse_other("remove container", workspace_id, name, _labels(found))
        self._engine.remove(found["Id"])
        log.info("container removed", workspace=workspace_id, container=found["Id"][:12], host=self.host)

    def destroy_storage(self, workspace_id: str, *, made_by: str | None = None) -> Sequence[str]:
        """See `Compute.destroy_storage`. A volume that is not this workspace's is passed over."""
        holders: dict[str, None] = {}
        for volume in names.volume_names(workspace_id):
            labels = self._engine.volume_labels(volume)
            if labels is None or self._owner(workspace_id, volume, labels) not in {Owner.OURS, Owner.NAMELESS}:
                continue
            if made_by in (None, labels.get(names.JOB)):
                holders.update(dict.fromkeys(self._engine.remove_volume(volume)))
        return list(holders)

    def things(self, workspace_id: str | None = None) -> Sequence[Thing]:
        """See `Compute.things`; containers that never started are among them."""
        wanted = [f"{label}={value}" for label, value in self._marks().items()]
        if workspace_id is not None:
            wanted.append(f"{names.WORKSPACE}={workspace_id}")
        containers, volumes = self._engine.listed(wanted)
        return [
            *(names.thing_of(ThingKind.CONTAINER, name_of(found), found.get("Labels")) for found in containers),
            *(names.thing_of(ThingKind.VOLUME, found["Name"], found.get("Labels")) for found in volumes),
        ]

    def logs(self, workspace_id: str, tail: int) -> str:
        """See `Compute.logs`; at most the last MiB."""
        name = container_name(workspace_id)
        found = self._engine.container(name)
        if found is None or self._owner(workspace_id, name, _labels(found)) is not Owner.OURS:
            raise Refused("read logs: the workspace has no container", hint="start the workspace first", code="no_container")
        output = self._engine.logs(found["Id"], max(1, min(tail, _LOG_LINES)))
        return output[-_LOG_BYTES:].decode(errors="replace")

    # ---- for the composition root

    def gateway(self) -> str:
        """The host's address on the workspace network, which is made when it is missing: where the receiver listens."""
        return gateway_of(self._network_now())

    def found_gateway(self) -> str | None:
        """As `gateway`, None while the network is not there: nothing is made."""
        found = self._engine.found_network(self._network)
        return None if found is None else gateway_of(found)

    def found_subnets(self) -> list[str]:
        """Where this network's workspaces call from (CIDR); none while the network is not there."""
        return subnets_of(self._engine.found_network(self._network) or {})

    @property
    def address(self) -> str:
        """Where the engine is asked."""
        return self._engine.address

    def version(self) -> str:
        """The engine's own version; the question that tells whether it answers. Raises Unreachable or Misconfigured."""
        return self._engine.version()

    def ping(self) -> None:
        """Raise what `version` raises, answer nothing."""
        self.version()

    def close(self) -> None:
        """Close the connections of every thread."""
        self._engine.close()

    # ---- whose it is

    def _marks(self) -> dict[str, str]:
        return {names.MANAGED: "true", names.INSTALLATION: self._shape.installation}

    def _owner(self, workspace_id: str, name: str, labels: Mapping[str, str] | None) -> Owner:
        return names.owner_of(name, labels, installation=self._shape.installation, workspace_id=workspace_id)

    def _refuse_other(self, action: str, workspace_id: str, name: str, labels: Mapping[str, str] | None) -> None:
        if self._owner(workspace_id, name, labels) not in {Owner.OURS, Owner.NAMELESS}:
            raise names.foreign(action, name)

    # ---- parts of `ensure_created`

    def _network_now(self) -> dict[str, Any]:
        return self._engine.network(self._network, self._marks())

    def _remove_previous(self, workspace_id: str) -> None:
        name = container_name(workspace_id)
        found = self._engine.container(name)
        if found is not None:
            self._refuse_other("create container", workspace_id, name, _labels(found))
            self._engine.remove(found["Id"])

    def _put_files(self, spec: WorkspaceSpec, container_id: str) -> None:
        """Into the volume of a container that has not started: no process can read an older file first."""
        files = {path: text.reveal() for path, text in spec.files.items()}
        fresh = {path: text for path, text in spec.defaults.items() if path not in files and self._is_free(container_id, path)}
        self._engine.put(container_id, CONFIGS, archive({**fresh, **files}, now=time.time()))

    def _is_free(self, container_id: str, path: str) -> bool:
        refuse_path(path)
        return not self._engine.lies(container_id, f"{CONFIGS}/{path}")

    def _refuse_second(self, container_id: str) -> None:
        """Whosever the other one is: installations share the host's port as well."""
        if set(self._engine.on_host_network(f"{names.MANAGED}=true")) - {container_id}:
            raise second_on_host()

    def _abandon(self, container_id: str) -> None:
        try:
            self._engine.remove(container_id)
        except WorkerError as error:
            # The first failure is the one to tell; the next `ensure_created` or `destroy` removes what bears the name.
            log.warning("container left behind", container=container_id[:12], host=self.host, code=error.code)


def _refuse_host_directory(spec: WorkspaceSpec) -> None:
    """The directory that a link leads to must be allowed as well, where this process sees the engine's disk."""
    match workspace_mount(spec):
        case Bind(path, _):
            refuse_directory(os.path.realpath(path))
        case _:
            return


def _labels(found: Mapping[str, Any]) -> Mapping[str, str] | None:
    labels: Mapping[str, str] | None = (found.get("Config") or {}).get("Labels")
    return labels
