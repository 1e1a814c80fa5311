"""Tiers 3 and 4 through a whole provision: as far as this engine lets them, and never where tenants share the host."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from docker import APIClient
from sqlalchemy import text

from config import settings
from config.settings import runtimes
from tasks.catalogue import KINDS
from tests.agents import nowhere
from tests.commands import Shell
from tests.conftest import Database, missing
from tests.demo_image import BUSYBOX, DEMO, engine, grants_privileges
from tests.integration.images import bench
from tests.rows import add_workspace, row_of, set_columns
from tests.serving import served
from tests.toys import process, state, status
from tests.waiting import until
from worker.assembly import assemble
from worker.backends.docker import DockerCompute
from worker.backends.docker_shape import Shape
from worker.backends.memory import MemoryCompute
from worker.crypto.keyring import StaticKey
from worker.domain import Handle, Image, WorkspaceId, WorkspaceStatus, container_name
from worker.forge import make_template
from worker.images.simulated import SimulatedImages
from worker.ports import Compute, ImagePending, Images, Stopping
from worker.receiver import receiver
from worker.store import kinds as catalogue
from worker.store import requests
from worker.store.cache import Cache
from worker.world import World


def world_of(database: Database, compute: Compute, images: Images, url: str = "http://127.0.0.1:1", *, saas: bool = False) -> World:
    with database.engine.begin() as connection:
        catalogue.write(connection, KINDS, backend=compute.name, host=compute.host)
    return World(
        engine=database.engine,
        key=StaticKey(bytes(range(32))),
        compute=compute,
        images=images,
        cache=Cache(None),
        runtimes=runtimes(),
        platform_url=lambda: url,
        passthrough={},
        saas=saas,
        answers=lambda: True,
    )


def ended(database: Database, world: World, job: str) -> Any:
    with process(database, world, *KINDS, backend=world.compute.name):
        until(lambda: state(database, job) in {"succeeded", "failed"}, within=30, what=f"{status(database, job)}")
    return status(database, job)


def count(database: Database, what: str, workspace_id: str) -> int:
    with database.engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {what}"), {"id": workspace_id}).scalar_one())


def left(database: Database, world: World, workspace_id: str) -> list[int]:
    """Things outside, open lines of the ledger, live tokens."""
    return [
        len(world.compute.things(workspace_id)),
        count(database, "worker.ledger WHERE state <> 'gone' AND subject = 'workspace:' || :id", workspace_id),
        count(database, "workspace_auth_tokens WHERE revoked_at IS NULL AND workspace_id = :id", workspace_id),
    ]


# ---- on an engine


class Watched(DockerCompute):
    """Keeps what the engine says of each container before it is started."""

    def __init__(self, client: APIClient, network: str) -> None:
        super().__init__(shape=Shape(f"tests-{uuid4()}"), network=network)
        self.client = client
        self.seen: list[dict[str, Any]] = []

    def ensure_started(self, workspace_id: str) -> Handle:
        self.seen.append(self.client.inspect_container(container_name(workspace_id)))
        return super().ensure_started(workspace_id)


@contextmanager
def watched(client: APIClient) -> Iterator[Watched]:
    """A host of its own on the machine's engine, of which nothing is left."""
    network = f"molecule-worker-tests-{uuid4().hex[:12]}"
    compute = Watched(client, network)
    try:
        yield compute
    finally:
        for thing in {str(thing.workspace_id) for thing in compute.things()}:
            compute.destroy(thing)
            compute.destroy_storage(thing)
        compute.close()
        for found in client.networks(names=[network]):
            client.remove_network(found["Id"])


@pytest.fixture
def client() -> Iterator[APIClient]:
    if not BUSYBOX.exists() or shutil.which("git") is None:
        missing("git or a static busybox (apt-get install git busybox-static)")
    found = engine()
    yield found
    found.close()


@pytest.mark.parametrize("tier", [3, 4])
def test_a_privileged_workspace_goes_as_far_as_the_engine_lets_it_and_what_fails_is_undone(
    client: APIClient, database: Database, tmp_path: Path, tier: int
) -> None:
    door = receiver(database.engine, Cache(None), saas=False, lookup=nowhere)
    with bench(tmp_path, database) as around, watched(client) as compute, served(door, compute.gateway()) as platform:
        around.forge.publish("langgraph", make_template(DEMO, BUSYBOX, tmp_path / "template"))
        world = world_of(database, compute, around.worker(), str(platform.base_url))
        shell = Shell({"DATABASE_URL": database.url.reveal(), "MOLECULE_WORKER_STATE_DIR": str(tmp_path / "state")})

        made = shell("workspaces", "create", "--name", "a", "--tier", str(tier), "--json")
        assert made.code == 0, made.err
        workspace_id, job_id = json.loads(made.out)["workspace_id"], json.loads(made.out)["job_id"]
        job = ended(database, world, job_id)

        assert_privileged(compute.seen[0], tier)
        granted = grants_privileges(client, compute.seen[0]["Config"]["Image"])
        assert (job["state"], granted) in {("succeeded", True), ("failed", False)}
        if granted:
            assert row_of(database, workspace_id).status == WorkspaceStatus.ONLINE
            return
        assert (job["error"]["step"], job["error"]["code"], job["error"]["blame"]) == ("start", "privileges_refused", "operator")
        assert job["error"]["message"] == "start container: the engine cannot give a container more privileges than it has itself"
        row = row_of(database, workspace_id)
        assert (row.status, row.last_sample_error) == (WorkspaceStatus.FAILED, job["error"]["message"])
        assert left(database, world, workspace_id) == [0, 0, 0]


def assert_privileged(seen: dict[str, Any], tier: int) -> None:
    host = seen["HostConfig"]
    assert (host["Privileged"], host["PidMode"]) == (True, "host")
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    sockets = [mount for mount in seen["Mounts"] if mount["Type"] == "bind"]
    if tier == 3:
        attached = seen["NetworkSettings"]["Networks"]
        assert [found["Aliases"][0] for found in attached.values()] == [seen["Name"].removeprefix("/")]
        assert list(host["PortBindings"]) == ["8000/tcp"]
        assert (sockets, host["Memory"]) == ([], 2048 << 20)
        return
    assert (host["NetworkMode"], list(seen["NetworkSettings"]["Networks"]), host["PortBindings"]) == ("host", ["host"], None)
    assert [(mount["Source"], mount["Destination"]) for mount in sockets] == [("/var/run/docker.sock",) * 2]
    assert host["Memory"] == 4096 << 20


# ---- where tenants share the host


@pytest.fixture
def workspace(database: Database) -> WorkspaceId:
    made = add_workspace(database)
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.placements SET backend = 'memory'"))
    return made


def provision(database: Database, world: World, workspace_id: str) -> Any:
    with database.engine.begin() as connection:
        job, _ = requests.enqueue(connection, "workspace.provision", {"workspace_id": workspace_id})
    return ended(database, world, job)


@pytest.mark.parametrize("tier", [3, 4])
def test_a_row_of_another_program_is_not_admitted_where_tenants_share_the_host(
    database: Database, tmp_path: Path, workspace: WorkspaceId, tier: int
) -> None:
    set_columns(database, workspace, tier=tier)
    compute = MemoryCompute(path=tmp_path / "world.json", installation="here")
    world = world_of(database, compute, SimulatedImages(["langgraph"]), saas=True)

    job = provision(database, world, workspace)

    said = f"provision workspace: tier {tier} is root on the host, which tenants share on this installation"
    assert (job["error"]["step"], job["error"]["code"], job["error"]["message"]) == ("admit", "tier_refused", said)
    assert row_of(database, workspace).last_sample_error == said
    assert left(database, world, workspace) == [0, 0, 0]


@pytest.mark.parametrize(("org", "saas"), [({"MOLECULE_ORG_ID": "acme"}, True), ({}, False)])
def test_a_worker_process_knows_whether_tenants_share_its_host(
    database: Database, tmp_path: Path, org: dict[str, str], saas: bool
) -> None:
    own = settings.load({"MOLECULE_BACKEND": "memory", "MOLECULE_WORKER_STATE_DIR": str(tmp_path), **org})
    with ExitStack() as closing:
        assert assemble(own, database.engine, 0, closing).saas is saas


class Raising(SimulatedImages):
    """Somebody raises the row's tier while the image is made."""

    def __init__(self, database: Database, workspace: str) -> None:
        super().__init__(["langgraph"])
        self._database, self._workspace = database, workspace

    def ensure(self, runtime: str, job_id: str, stopping: Stopping) -> Image | ImagePending:
        set_columns(self._database, self._workspace, tier=4)
        return super().ensure(runtime, job_id, stopping)


def test_a_tier_that_is_raised_after_the_admission_is_refused_before_anything_is_made(
    database: Database, tmp_path: Path, workspace: WorkspaceId
) -> None:
    compute = MemoryCompute(path=tmp_path / "world.json", installation="here")
    world = world_of(database, compute, Raising(database, workspace), saas=True)

    job = provision(database, world, workspace)

    assert (job["error"]["step"], job["error"]["code"]) == ("storage", "tier_refused")
    assert left(database, world, workspace) == [0, 0, 0]
