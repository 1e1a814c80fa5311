"""Facts about a real Docker engine that the contract suite cannot ask of a fake."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import monotonic
from typing import Any
from uuid import uuid4

import httpx
import pytest
from docker import APIClient

from tests.computing import bring_up
from tests.contract.worlds import DockerWorld
from tests.demo_image import DemoImages, demo_images, engine
from tests.listening import platform
from tests.waiting import until
from worker.backends.docker import DockerCompute
from worker.backends.names import config_volume, labels_of, workspace_volume
from worker.domain import Handle, JobId, Presence, Secret, WorkspaceId, WorkspaceSpec, container_name, short_id
from worker.errors import BackendBusy, Foreign, Refused, Retryable


@pytest.fixture(scope="module")
def client() -> Iterator[APIClient]:
    found = engine()
    yield found
    found.close()


@pytest.fixture(scope="module")
def images(client: APIClient) -> Iterator[DemoImages]:
    yield from demo_images(client)


@pytest.fixture
def world(client: APIClient, images: DemoImages) -> Iterator[DockerWorld]:
    found = DockerWorld(client, images, f"molecule-worker-tests-{uuid4().hex[:12]}")
    try:
        yield found
    finally:
        found.close()
        for network in networks(found):
            client.remove_network(network)


def networks(world: DockerWorld) -> list[str]:
    found = [network for network in world.client.networks(names=[world.network]) if network["Name"] == world.network]
    return [network["Id"] for network in sorted(found, key=lambda network: str(network["Created"]))]


def docker(world: DockerWorld) -> DockerCompute:
    return world.opened[0]


@pytest.fixture
def spec(world: DockerWorld) -> WorkspaceSpec:
    workspace_id = str(uuid4())
    return WorkspaceSpec(
        workspace_id=WorkspaceId(workspace_id),
        job_id=JobId(str(uuid4())),
        org="acme",
        runtime="langgraph",
        tier=2,
        image=world.image,
        environment={"WORKSPACE_ID": Secret(workspace_id)},
        files={".auth_token": Secret("the-token")},
        defaults={"config.yaml": "name: demo\n"},
    )


@pytest.mark.parametrize("tier", [1, 2])
def test_the_demo_runtime_registers_and_lives(world: DockerWorld, spec: WorkspaceSpec, tier: int) -> None:
    with platform(docker(world).gateway(), refusals=1) as heard:
        settings = {"PLATFORM_URL": Secret(f"http://{docker(world).gateway()}:{heard.port}/api/"), "HEARTBEAT_SECONDS": Secret("1")}
        handle = bring_up(world.compute, replace(spec, tier=tier, environment={**spec.environment, **settings}))
        # The first registration is refused: an agent asks again until it is heard.
        until(lambda: len(heard.of("/api/registry/heartbeat")) >= 2, within=20)
        assert handle.url is not None
        card = httpx.get(f"{handle.url}/.well-known/agent-card.json").json()
        world.client.restart(handle.id, timeout=1)
        until(lambda: len(heard.of("/api/registry/register")) >= 3, within=20, what="a restarted agent registers again")
    first = heard.of("/api/registry/register")[0]
    assert first.bearer == "Bearer the-token"
    assert first.body == {
        "id": spec.workspace_id,
        "url": f"http://{container_name(spec.workspace_id)}:8000",
        "agent_card": card,
    }
    beat = heard.of("/api/registry/heartbeat")[0]
    assert beat.bearer == "Bearer the-token"
    assert beat.body["workspace_id"] == spec.workspace_id
    assert {"error_rate", "sample_error", "active_tasks", "current_task", "uptime_seconds"} <= beat.body.keys()


def test_the_demo_runtime_is_not_root_and_leaves_at_once(world: DockerWorld, spec: WorkspaceSpec) -> None:
    handle = bring_up(world.compute, spec)
    titles = until(lambda: processes(world.client, handle.id), what="the agent serves")
    assert {owner for owner, command in titles if "httpd" in command or "agent.sh" in command} == {"1000"}
    assert not [command for _, command in titles if "the-token" in command]
    begun = monotonic()
    world.client.stop(handle.id, timeout=10)
    assert monotonic() - begun < 5
    assert world.compute.inspect(spec.workspace_id).presence is Presence.STOPPED
    assert container_name(spec.workspace_id) in {thing.name for thing in world.compute.things(spec.workspace_id)}
    world.compute.destroy(spec.workspace_id)
    assert world.compute.inspect(spec.workspace_id).presence is Presence.GONE


def processes(client: APIClient, container: str) -> list[tuple[str, str]]:
    top = client.top(container, ps_args="-eo pid,uid,args")
    found = [(str(row[1]), str(row[2])) for row in top["Processes"]]
    return found if any("httpd" in command for _, command in found) else []


def test_the_address_follows_a_restart(world: DockerWorld, spec: WorkspaceSpec) -> None:
    handle = bring_up(world.compute, spec)
    world.client.restart(handle.id, timeout=1)

    def card() -> bool:
        url = world.compute.inspect(spec.workspace_id).url
        assert url is not None
        try:
            return httpx.get(f"{url}/.well-known/agent-card.json").is_success
        except httpx.TransportError:
            return False

    until(card, what="the card at the address of now")


def test_on_the_host_s_network_the_address_is_the_host_s_and_a_second_start_is_not_refused(
    world: DockerWorld, spec: WorkspaceSpec
) -> None:
    config = {
        # As tier 4 but for its privileges, which not every engine can give; it only sleeps and takes no port.
        "HostConfig": {"NetworkMode": "host", "PidMode": "host"},
        "Entrypoint": ["/bin/busybox", "sleep", "600"],
        "Image": world.image,
        "Labels": labels_of(spec, world.installation_id),
    }
    make: Any = world.client.create_container_from_config
    made = Handle(make(config, container_name(spec.workspace_id))["Id"], "http://127.0.0.1:8000")

    def started() -> Handle | None:
        try:
            return world.compute.ensure_started(spec.workspace_id)
        except BackendBusy:  # another run of these tests has the host's port
            return None

    assert until(started) == made
    assert until(started) == made
    assert world.compute.inspect(spec.workspace_id).url == made.url


def twin(world: DockerWorld, labels: dict[str, str]) -> None:
    world.client.create_network(world.network, driver="bridge", check_duplicate=False, labels=labels)


def test_of_two_networks_of_one_name_the_older_one_is_kept(world: DockerWorld, spec: WorkspaceSpec) -> None:
    ours = {"molecule.platform.managed": "true", "molecule.platform.installation": world.installation_id}
    twin(world, ours)
    twin(world, ours)
    older, _ = networks(world)
    handle = bring_up(world.compute, spec)
    attached = world.client.inspect_container(handle.id)["NetworkSettings"]["Networks"]
    assert [network["NetworkID"] for network in attached.values()] == [older]
    assert container_name(spec.workspace_id) in next(iter(attached.values()))["Aliases"]
    assert docker(world).gateway() == world.client.inspect_network(older)["IPAM"]["Config"][0]["Gateway"]
    assert networks(world) == [older]


def test_a_network_of_our_name_that_is_not_ours_is_never_removed(world: DockerWorld, spec: WorkspaceSpec) -> None:
    twin(world, {})
    twin(world, {"molecule.platform.managed": "true", "molecule.platform.installation": "another"})
    before = networks(world)
    world.compute.ensure_created(spec)
    with pytest.raises(Retryable) as failure:
        world.compute.ensure_started(spec.workspace_id)
    assert failure.value.code == "network_ambiguous"
    assert networks(world) == before
    # What may pass is tried again with the same container.
    world.client.remove_network(before[1])
    world.compute.ensure_started(spec.workspace_id)
    assert world.compute.inspect(spec.workspace_id).presence is Presence.RUNNING


def test_a_network_that_many_need_at_once_is_made_once(world: DockerWorld) -> None:
    # Each with a lock of its own, as separate processes have.
    installations = [world.open(world.installation_id) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        gateways = list(threads.map(lambda compute: compute.gateway(), installations))
    assert len(set(gateways)) == 1
    assert len(networks(world)) == 1


def test_many_may_destroy_at_once_and_each_returns_when_it_is_gone(world: DockerWorld, spec: WorkspaceSpec) -> None:
    bring_up(world.compute, spec)

    def destroy(_: int) -> Presence:
        world.compute.destroy(spec.workspace_id)
        return world.compute.inspect(spec.workspace_id).presence

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(destroy, range(4))) == [Presence.GONE] * 4


def test_an_unlabelled_volume_is_ours_only_by_its_full_name(world: DockerWorld, spec: WorkspaceSpec) -> None:
    full, short = workspace_volume(spec.workspace_id), config_volume(spec.workspace_id)
    for volume in (full, short):
        world.client.create_volume(volume)
    try:
        with pytest.raises(Foreign):
            world.compute.ensure_storage(spec)
        assert world.compute.destroy_storage(spec.workspace_id, made_by=spec.job_id) == []
        assert full in world.names()
        assert world.compute.destroy_storage(spec.workspace_id) == []
        assert {name for name in world.names() if short_id(spec.workspace_id) in name} == {short}
    finally:
        world.client.remove_volume(short)


def test_a_bound_directory_is_the_tenant_s_own(world: DockerWorld, spec: WorkspaceSpec) -> None:
    """The engine refuses what does not exist, and makes nothing on the host."""
    nowhere = f"/srv/{uuid4()}"
    with pytest.raises(Refused, match="does not exist") as refusal:
        bring_up(world.compute, replace(spec, workspace_dir=nowhere, workspace_access="read_only"))
    assert nowhere not in str(refusal.value)
    assert world.compute.inspect(spec.workspace_id).presence is Presence.GONE
