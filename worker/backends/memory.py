"""Runs workspaces nowhere: a faithful fake for tests, and what a machine without a Docker engine is shown, labelled simulated."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import uuid4

from worker.backends import names
from worker.backends.docker_shape import environment_list
from worker.backends.memory_agent import Agents
from worker.backends.memory_world import Container, Fault, File, Host, Volume, World
from worker.backends.mounts import Bind, workspace_mount
from worker.backends.names import Owner
from worker.backends.tar import TOKEN_FILE, bytes_of, mode_of, refuse_path
from worker.backends.tiers import reach_of, second_on_host
from worker.domain import Handle, Observation, Presence, Secret, Thing, ThingKind, WorkspaceSpec, container_name, short_id
from worker.errors import BackendBusy, Misconfigured, Refused, Unreachable

_CRASHES: Final = 3


class MemoryCompute:
    """`worker.ports.Compute` over the file at `path`, which several processes may share.

    With `platform_url` every started workspace registers there and sends heartbeats each `heartbeat_s` seconds.
    """

    name: str = "memory"

    def __init__(
        self,
        *,
        path: Path,
        installation: str,
        host: str = "local",
        keeps_sessions: Callable[[str], bool] = lambda _runtime: False,
        platform_url: str | None = None,
        heartbeat_s: float = 30.0,
    ) -> None:
        self.host = host
        self.world = Host(path)
        #: workspace id → what its process received; in this process's memory only, since it holds secrets
        self.environments: dict[str, Mapping[str, Secret]] = {}
        self._installation = installation
        self._keeps_sessions = keeps_sessions
        self._agents = Agents(self.world, platform_url, heartbeat_s=heartbeat_s) if platform_url else None

    # ---- the port

    def plan(self, workspace_id: str, runtime: str, tier: int) -> Sequence[Thing]:
        """See `Compute.plan`."""
        return names.planned_things(workspace_id, tier=tier, sessions=self._keeps_sessions(runtime))

    def ensure_storage(self, spec: WorkspaceSpec) -> None:
        """See `Compute.ensure_storage`."""
        after = self._faults("ensure_storage", "create volume")
        with self.world.change() as world:
            self._ensure_volumes(world, spec)
        after()

    def ensure_created(self, spec: WorkspaceSpec) -> str:
        """See `Compute.ensure_created`."""
        _refuse_unusable(spec)
        after = self._faults("ensure_created", "create container")
        with self.world.change() as world:
            self._refuse_foreign(world, spec.workspace_id)
            world.containers.pop(container_name(spec.workspace_id), None)
            self._ensure_volumes(world, spec)
            _put_files(world.volumes[names.config_volume(spec.workspace_id)], spec)
            made = self._created(world, spec)
        self.environments[spec.workspace_id] = dict(spec.environment)
        after()
        return made.id

    def ensure_started(self, workspace_id: str) -> Handle:
        """See `Compute.ensure_started`."""
        fault = self._next_fault("ensure_started")
        after = _before(fault, "start container")
        name = container_name(workspace_id)
        with self.world.change() as world:
            made = world.containers.get(name)
            if made is None:
                raise Refused("start container: it is gone", hint="somebody removed it; retry the job", code="container_gone")
            self._refuse_foreign(world, workspace_id)
            _refuse_second(world, made)
            if fault is Fault.START_FAILS:
                del world.containers[name]
            else:
                _start(made, dies=fault is Fault.DIES)
        if fault is Fault.START_FAILS:
            raise Misconfigured("start container: the image's entry point cannot be started", code="image_broken")
        after()
        self._wake()
        return Handle(made.id, _url(workspace_id) if made.running else None)

    def inspect(self, workspace_id: str) -> Observation:
        """See `Compute.inspect`. Also revives the agents of a process that died."""
        try:
            if self._next_fault("inspect"):
                return Observation(Presence.UNKNOWN, reason="unanswered")
            found = self.world.now().containers.get(container_name(workspace_id))
        except Unreachable:
            return Observation(Presence.UNKNOWN, reason="unanswered")
        if found is None:
            return Observation(Presence.GONE)
        owner = self._owner(workspace_id, container_name(workspace_id), found.labels)
        if owner is Owner.SIBLING:
            # A name is unique, so while the other workspace has it this one has no container: as good as a 404.
            return Observation(Presence.GONE)
        if owner is not Owner.OURS:
            return Observation(Presence.UNKNOWN, reason="foreign")
        self._wake()
        return _seen(found, workspace_id)

    def destroy(self, workspace_id: str) -> None:
        """See `Compute.destroy`."""
        after = self._faults("destroy", "remove container")
        name = container_name(workspace_id)
        with self.world.change() as world:
            found = world.containers.get(name)
            owner = self._owner(workspace_id, name, found.labels) if found else Owner.SIBLING
            if owner is Owner.OURS:
                del world.containers[name]
            elif owner is not Owner.SIBLING:
                raise names.foreign("remove container", name)
        self.environments.pop(workspace_id, None)
        after()

    def destroy_storage(self, workspace_id: str, *, made_by: str | None = None) -> Sequence[str]:
        """See `Compute.destroy_storage`."""
        after = self._faults("destroy_storage", "remove volume")
        holders: dict[str, None] = {}
        with self.world.change() as world:
            for name in names.volume_names(workspace_id):
                found = world.volumes.get(name)
                if found is None or self._owner(workspace_id, name, found.labels) not in {Owner.OURS, Owner.NAMELESS}:
                    continue
                if made_by not in (None, found.labels.get(names.JOB)):
                    continue
                held_by = [holder for holder, container in world.containers.items() if name in container.volumes]
                holders.update(dict.fromkeys(held_by))
                if not held_by:
                    del world.volumes[name]
        after()
        return list(holders)

    def things(self, workspace_id: str | None = None) -> Sequence[Thing]:
        """See `Compute.things`."""
        self._faults("things", "list containers")()
        world = self.world.now()
        listed = [
            *(
                names.thing_of(ThingKind.CONTAINER, name, found.labels)
                for name, found in world.containers.items()
                if self._here(found)
            ),
            *(names.thing_of(ThingKind.VOLUME, name, found.labels) for name, found in world.volumes.items() if self._here(found)),
        ]
        return [thing for thing in listed if workspace_id in (None, thing.workspace_id)]

    def logs(self, workspace_id: str, tail: int) -> str:
        """See `Compute.logs`."""
        name = container_name(workspace_id)
        found = self.world.now().containers.get(name)
        if found is None or self._owner(workspace_id, name, found.labels) is not Owner.OURS:
            raise Refused("read logs: the workspace has no container", hint="start the workspace first", code="no_container")
        return "".join(f"{line}\n" for line in found.log[-max(1, tail) :])

    # ---- for the composition root and for tests

    def script(self, verb: str, fault: Fault, *, times: int = 1) -> None:
        """Let the next `times` calls of `verb` (a method's name) meet `fault`, in whichever process they are made."""
        with self.world.change() as world:
            world.faults += [(verb, fault)] * times

    def version(self) -> str:
        """What stands in for an engine's version. Raises Unreachable when the world cannot be read."""
        self.world.now()
        return "simulated"

    def ping(self) -> None:
        """Raise what `version` raises, answer nothing."""
        self.version()

    def close(self) -> None:
        """Stop playing agents."""
        if self._agents is not None:
            self._agents.close()

    # ---- inside

    def _wake(self) -> None:
        if self._agents is not None:
            self._agents.wake()

    def _here(self, found: Container | Volume) -> bool:
        return found.labels.get(names.INSTALLATION) == self._installation

    def _owner(self, workspace_id: str, name: str, labels: Mapping[str, str]) -> Owner:
        return names.owner_of(name, labels, installation=self._installation, workspace_id=workspace_id)

    def _refuse_foreign(self, world: World, workspace_id: str) -> None:
        name = container_name(workspace_id)
        found = world.containers.get(name)
        if found is not None and self._owner(workspace_id, name, found.labels) is not Owner.OURS:
            raise names.foreign("start workspace", name)

    def _ensure_volumes(self, world: World, spec: WorkspaceSpec) -> None:
        for name in self._volumes_of(spec):
            made = world.volumes.setdefault(name, Volume(names.labels_of(spec, self._installation)))
            if self._owner(spec.workspace_id, name, made.labels) not in {Owner.OURS, Owner.NAMELESS}:
                raise names.foreign("start workspace", name)

    def _volumes_of(self, spec: WorkspaceSpec) -> list[str]:
        planned = names.planned_volumes(spec.workspace_id, tier=spec.tier, sessions=self._keeps_sessions(spec.runtime))
        bound = isinstance(workspace_mount(spec), Bind)
        return [name for name in planned if not (bound and name == names.workspace_volume(spec.workspace_id))]

    def _created(self, world: World, spec: WorkspaceSpec) -> Container:
        token = world.volumes[names.config_volume(spec.workspace_id)].files.get(TOKEN_FILE)
        made = Container(
            id=uuid4().hex,
            labels=names.labels_of(spec, self._installation),
            volumes=self._volumes_of(spec),
            running=False,
            reach=reach_of(spec.tier),
            log=["simulated", f"token file: mode {token.mode:o}" if token else "token file: none"],
        )
        world.containers[container_name(spec.workspace_id)] = made
        return made

    def _next_fault(self, verb: str) -> Fault | None:
        if not self.world.now().faults:
            return None
        with self.world.change() as world:
            for place, (scripted, fault) in enumerate(world.faults):
                if scripted == verb:
                    del world.faults[place]
                    return fault
        return None

    def _faults(self, verb: str, action: str) -> Callable[[], None]:
        return _before(self._next_fault(verb), action)


def _before(fault: Fault | None, action: str) -> Callable[[], None]:
    """Raise what happens before the effect; answers what happens after it."""
    if fault is Fault.BUSY:
        raise BackendBusy(f"{action}: the simulated host is busy", hint="it is tried again by itself")
    lost = Unreachable(f"{action}: the simulated host did not answer", hint="it is tried again by itself")
    if fault is Fault.UNKNOWN:
        raise lost

    def after() -> None:
        if fault is Fault.LOST:
            raise lost

    return after


def _seen(found: Container, workspace_id: str) -> Observation:
    if found.running:
        return Observation(Presence.RUNNING, found.id, _url(workspace_id), restarts=found.restarts)
    reason = "restarting" if found.restarts else None
    return Observation(Presence.STOPPED, found.id, None, found.restarts, found.exit_code, reason)


def _start(made: Container, *, dies: bool) -> None:
    made.running = not dies
    made.restarts = _CRASHES if dies else 0
    made.exit_code = 1 if dies else None


def _refuse_second(world: World, made: Container) -> None:
    others = (other for other in world.containers.values() if other.id != made.id and other.running)
    if made.reach.host_network and any(other.reach.host_network for other in others):
        raise second_on_host()


def _refuse_unusable(spec: WorkspaceSpec) -> None:
    environment_list(spec.environment)
    for path, text in [*spec.defaults.items(), *((path, text.reveal()) for path, text in spec.files.items())]:
        refuse_path(path)
        bytes_of(path, text)


def _put_files(volume: Volume, spec: WorkspaceSpec) -> None:
    for path, text in spec.defaults.items():
        volume.files.setdefault(path, File(text, mode_of(path)))
    for path, secret in spec.files.items():
        volume.files[path] = File(secret.reveal(), mode_of(path))


def _url(workspace_id: str) -> str:
    """An address that nobody answers at: the name's ending is reserved for that."""
    return f"http://ws-{short_id(workspace_id)}.simulated.invalid:8000"
