"""Two worlds in which the same suite runs, and what a test may do to them behind the backend's back."""

import io
import tarfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from docker import APIClient
from docker.errors import NotFound

from tests.demo_image import DemoImages, grants_privileges
from worker.backends.docker import DockerCompute
from worker.backends.docker_shape import Shape
from worker.backends.memory import MemoryCompute
from worker.backends.memory_world import Container, Fault, Host
from worker.backends.memory_world import File as MemoryFile
from worker.backends.names import config_volume
from worker.backends.tiers import Reach, reach_of
from worker.domain import WorkspaceSpec, container_name
from worker.ports import Compute


@dataclass(frozen=True)
class Found:
    """A file as it lies in a workspace's configuration."""

    content: bytes
    mode: int


class World(Protocol):
    """One host, seen from outside the backend."""

    compute: Compute
    image: str

    def installation(self) -> Compute:
        """Another installation on the same host."""

    def silent(self) -> Compute:
        """The same installation, whose host does not answer."""

    def file(self, workspace_id: str, path: str) -> Found: ...

    def edit(self, workspace_id: str, path: str, text: str) -> None: ...

    def variable(self, workspace_id: str, name: str) -> str: ...

    def occupy(self, name: str, *, volume: str | None = None) -> str:
        """A container that nobody's labels are on; answers its id."""

    def occupant(self, name: str) -> str | None: ...

    def names(self) -> set[str]:
        """Everything on the host, labelled or not, that bears a workspace's name."""

    def reach(self, workspace_id: str) -> Reach:
        """What its container has of the host, as the host says."""

    def grants_privileges(self) -> bool:
        """Whether the host can start what is privileged at all."""

    def hold_host_port(self) -> str:
        """Somebody's workspace runs on the host's own network; its container's name."""

    def crashing(self, spec: WorkspaceSpec) -> WorkspaceSpec:
        """The spec whose process ends at once, again and again."""

    def unstartable(self, spec: WorkspaceSpec) -> WorkspaceSpec:
        """The spec that is created and cannot be started."""


class DockerWorld:
    """The machine's own engine."""

    def __init__(self, client: APIClient, images: DemoImages, network: str) -> None:
        self.client = client
        self.images = images
        self.image = images.runtime
        self.network = network
        self.opened: list[DockerCompute] = []
        self.occupied: list[str] = []
        self.installation_id = f"tests-{uuid4()}"
        self.compute: Compute = self.open(self.installation_id)

    def open(self, installation: str, base_url: str | None = None) -> DockerCompute:
        shape = Shape(installation=installation, restart_policy="unless-stopped")
        self.opened.append(
            DockerCompute(
                shape=shape, network=self.network, keeps_sessions=lambda runtime: runtime == "claude-code", base_url=base_url
            )
        )
        return self.opened[-1]

    def installation(self) -> Compute:
        return self.open(f"tests-{uuid4()}")

    def silent(self) -> Compute:
        return self.open(self.installation_id, "unix:///nowhere/docker.sock")

    def file(self, workspace_id: str, path: str) -> Found:
        stream, _ = self.client.get_archive(container_name(workspace_id), f"/configs/{path}")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as tar:
            entry = tar.getmembers()[0]
            content = tar.extractfile(entry)
            assert content is not None
            return Found(content.read(), entry.mode & 0o777)

    def edit(self, workspace_id: str, path: str, text: str) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
        self.client.put_archive(container_name(workspace_id), "/configs", buffer.getvalue())

    def variable(self, workspace_id: str, name: str) -> str:
        made = self.client.exec_create(container_name(workspace_id), ["/bin/busybox", "sh", "-c", f'printf %s "${name}"'])
        output: bytes = self.client.exec_start(made["Id"])
        return output.decode()

    def occupy(self, name: str, *, volume: str | None = None) -> str:
        mounts = [{"Type": "volume", "Source": volume, "Target": "/held"}] if volume else []
        config = {"Image": self.image, "HostConfig": {"Mounts": mounts}}
        make: Any = self.client.create_container_from_config
        self.occupied.append(make(config, name)["Id"])
        return self.occupied[-1]

    def occupant(self, name: str) -> str | None:
        try:
            return str(self.client.inspect_container(name)["Id"])
        except NotFound:
            return None

    def names(self) -> set[str]:
        containers = {name.removeprefix("/") for found in self.client.containers(all=True) for name in found["Names"]}
        return {
            name for name in containers | {found["Name"] for found in self.client.volumes()["Volumes"] or []} if name[:3] == "ws-"
        }

    def reach(self, workspace_id: str) -> Reach:
        found = self.client.inspect_container(container_name(workspace_id))
        host = found["HostConfig"]
        return Reach(
            privileged=host["Privileged"],
            host_pids=host["PidMode"] == "host",
            host_network=host["NetworkMode"] == "host" and list(found["NetworkSettings"]["Networks"]) == ["host"],
            engine_socket="/var/run/docker.sock" in {mount["Destination"] for mount in found["Mounts"]},
        )

    def grants_privileges(self) -> bool:
        return grants_privileges(self.client, self.image)

    def hold_host_port(self) -> str:
        name = f"holder-{uuid4().hex[:8]}"
        # It only sleeps: the tests take no port of the machine.
        config = {
            "Image": self.image,
            "Entrypoint": ["/bin/busybox", "sleep", "600"],
            "Labels": {"molecule.platform.managed": "true"},
            "HostConfig": {"NetworkMode": "host"},
        }
        make: Any = self.client.create_container_from_config
        self.occupied.append(make(config, name)["Id"])
        self.client.start(self.occupied[-1])
        return name

    def crashing(self, spec: WorkspaceSpec) -> WorkspaceSpec:
        return replace(spec, image=self.images.crashing)

    def unstartable(self, spec: WorkspaceSpec) -> WorkspaceSpec:
        return replace(spec, image=self.images.unstartable)

    def close(self) -> None:
        """Remove whatever a test left on the host, by its owner's labels only."""
        for container in self.occupied:
            # Gone already when a test has failed: the rest is removed all the same.
            with suppress(NotFound):
                self.client.remove_container(container, force=True)
        for compute in self.opened:
            label = {"label": f"molecule.platform.installation={compute._shape.installation}"}
            for found in self.client.containers(all=True, filters=label):
                self.client.remove_container(found["Id"], force=True, v=True)
            for volume in self.client.volumes(filters=label)["Volumes"] or []:
                self.client.remove_volume(volume["Name"])
            compute.close()


class MemoryWorld:
    """A file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.host = Host(path)
        self.image = "demo"
        self.installation_id = f"tests-{uuid4()}"
        self.memory = self.open(self.installation_id)
        self.compute: Compute = self.memory

    def open(self, installation: str, path: Path | None = None) -> MemoryCompute:
        return MemoryCompute(
            path=path or self.path, installation=installation, keeps_sessions=lambda runtime: runtime == "claude-code"
        )

    def installation(self) -> Compute:
        return self.open(f"tests-{uuid4()}")

    def silent(self) -> Compute:
        broken = self.path.with_name("broken.json")
        broken.write_text("{")
        return self.open(self.installation_id, broken)

    def file(self, workspace_id: str, path: str) -> Found:
        found = self.host.now().volumes[config_volume(workspace_id)].files[path]
        return Found(found.text.encode(), found.mode)

    def edit(self, workspace_id: str, path: str, text: str) -> None:
        with self.host.change() as world:
            world.volumes[config_volume(workspace_id)].files[path] = MemoryFile(text, 0o644)

    def variable(self, workspace_id: str, name: str) -> str:
        return self.memory.environments[workspace_id][name].reveal()

    def occupy(self, name: str, *, volume: str | None = None) -> str:
        made = Container(uuid4().hex, {}, [volume] if volume else [], running=False)
        with self.host.change() as world:
            world.containers[name] = made
        return made.id

    def occupant(self, name: str) -> str | None:
        found = self.host.now().containers.get(name)
        return found.id if found else None

    def names(self) -> set[str]:
        world = self.host.now()
        return {name for name in [*world.containers, *world.volumes] if name[:3] == "ws-"}

    def reach(self, workspace_id: str) -> Reach:
        return self.host.now().containers[container_name(workspace_id)].reach

    def grants_privileges(self) -> bool:
        return True

    def hold_host_port(self) -> str:
        name = f"holder-{uuid4().hex[:8]}"
        with self.host.change() as world:
            world.containers[name] = Container(uuid4().hex, {}, [], running=True, reach=reach_of(4))
        return name

    def crashing(self, spec: WorkspaceSpec) -> WorkspaceSpec:
        self.memory.script("ensure_started", Fault.DIES)
        return spec

    def unstartable(self, spec: WorkspaceSpec) -> WorkspaceSpec:
        self.memory.script("ensure_started", Fault.START_FAILS)
        return spec
