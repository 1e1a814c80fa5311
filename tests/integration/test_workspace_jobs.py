"""`workspace.provision` and `workspace.delete` as machines, on the in-memory backend with a real receiver."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from config.settings import runtimes
from tasks.catalogue import KINDS
from tests.agents import nowhere
from tests.conftest import Database
from tests.rows import add_workspace, events_of, row_of, set_columns
from tests.serving import served
from tests.toys import process, state, status
from tests.waiting import until
from worker.backends.memory import MemoryCompute
from worker.backends.memory_world import Container, Fault
from worker.crypto.keyring import StaticKey
from worker.domain import Image, Secret, WorkspaceId, WorkspaceStatus
from worker.images.simulated import SimulatedImages
from worker.ports import ImagePending, Stopping
from worker.receiver import receiver
from worker.store import kinds as catalogue
from worker.store import requests, secrets
from worker.store.cache import Cache
from worker.world import World

KEY = StaticKey(bytes(range(32)))


@dataclass
class Setting:
    """A world, and the short words of these tests."""

    database: Database
    world: World
    compute: MemoryCompute

    def ask(self, kind: str, workspace_id: str) -> str:
        with self.database.engine.begin() as connection:
            return requests.enqueue(connection, kind, {"workspace_id": workspace_id})[0]

    def ends(self, job: str, wanted: str) -> Any:
        until(lambda: state(self.database, job) == wanted, within=15, what=f"{status(self.database, job)}")
        return status(self.database, job)

    def run(self, kind: str, workspace_id: str, wanted: str, **changes: Any) -> Any:
        with process(self.database, replace(self.world, **changes), *KINDS):
            return self.ends(self.ask(kind, workspace_id), wanted)

    def live_tokens(self, workspace_id: str) -> int:
        return self.count("workspace_auth_tokens WHERE revoked_at IS NULL AND workspace_id = :id", workspace_id)

    def open_ledger(self, workspace_id: str) -> int:
        return self.count("worker.ledger WHERE state <> 'gone' AND subject = 'workspace:' || :id", workspace_id)

    def count(self, what: str, workspace_id: str) -> int:
        with self.database.engine.connect() as connection:
            return int(connection.execute(text(f"SELECT count(*) FROM {what}"), {"id": workspace_id}).scalar_one())


@pytest.fixture
def setting(database: Database, tmp_path: Path) -> Iterator[Setting]:
    with database.engine.begin() as connection:
        catalogue.write(connection, KINDS, backend="memory", host="local")
    cache = Cache(None)
    with served(receiver(database.engine, cache, saas=False, lookup=nowhere)) as client:
        compute = MemoryCompute(
            path=tmp_path / "world.json", installation="here", platform_url=str(client.base_url), heartbeat_s=0.2
        )
        world = World(
            engine=database.engine,
            key=KEY,
            compute=compute,
            images=SimulatedImages(runtimes().runtimes),
            cache=cache,
            runtimes=runtimes(),
            platform_url=lambda: str(client.base_url),
            passthrough={},
            saas=False,
            answers=lambda: True,
        )
        yield Setting(database, world, compute)
        compute.close()


@pytest.fixture
def workspace(setting: Setting) -> WorkspaceId:
    made = add_workspace(setting.database)
    place(setting, made, "memory", "local")
    return made


def place(setting: Setting, workspace_id: str, backend: str, host: str) -> None:
    with setting.database.engine.begin() as connection:
        connection.execute(
            text("UPDATE worker.placements SET backend = :b, host = :h WHERE workspace_id = :id"),
            {"b": backend, "h": host, "id": workspace_id},
        )


def kinds_of(setting: Setting, workspace_id: str) -> list[str]:
    return [kind for kind, _ in events_of(setting.database, workspace_id)]


def test_a_workspace_registers_by_itself_and_has_one_of_everything(setting: Setting, workspace: WorkspaceId) -> None:
    setting.run("workspace.provision", workspace, "succeeded")

    assert row_of(setting.database, workspace).status == WorkspaceStatus.ONLINE
    assert kinds_of(setting, workspace) == ["WORKSPACE_PROVISIONING", "WORKSPACE_ONLINE"]
    assert setting.live_tokens(workspace) == 1
    assert {thing.name for thing in setting.compute.things()} == {
        f"ws-{workspace[:12]}",
        f"ws-{workspace[:12]}-configs",
        f"ws-{workspace}-workspace",
    }
    assert setting.open_ledger(workspace) == 3


def test_after_a_delete_nothing_is_left_but_the_tombstone(setting: Setting, workspace: WorkspaceId) -> None:
    setting.run("workspace.provision", workspace, "succeeded")
    setting.run("workspace.delete", workspace, "succeeded")

    assert row_of(setting.database, workspace).status == WorkspaceStatus.REMOVED
    assert kinds_of(setting, workspace)[-1] == "WORKSPACE_REMOVED"
    assert setting.compute.things() == []
    assert (setting.live_tokens(workspace), setting.open_ledger(workspace)) == (0, 0)


def test_a_second_delete_changes_nothing(setting: Setting, workspace: WorkspaceId) -> None:
    for _ in range(2):
        setting.run("workspace.delete", workspace, "succeeded")

    assert kinds_of(setting, workspace) == ["WORKSPACE_REMOVED"]


def test_a_row_that_went_by_another_hand_does_not_hide_what_it_had(setting: Setting, workspace: WorkspaceId) -> None:
    setting.run("workspace.provision", workspace, "succeeded")
    with setting.database.engine.begin() as connection:
        connection.execute(text("DELETE FROM workspace_auth_tokens"))
        connection.execute(text("DELETE FROM workspaces"))
    setting.run("workspace.delete", workspace, "succeeded")

    assert setting.compute.things() == []
    assert setting.open_ledger(workspace) == 0


def test_a_runtime_that_crashes_is_undone_and_its_owner_is_told(setting: Setting, workspace: WorkspaceId) -> None:
    setting.compute.script("ensure_started", Fault.DIES)
    error = setting.run("workspace.provision", workspace, "waiting")

    assert error["waiting_for"] == "the agent to register by itself"
    assert isinstance(setting.compute.logs(workspace, 10), str)
    world = setting.compute.world
    with world.change() as now:
        now.containers[f"ws-{workspace[:12]}"].restarts = 7
    job = str(error["id"])
    with process(setting.database, setting.world, *KINDS):
        ended = setting.ends(job, "failed")
    assert (ended["error"]["code"], ended["error"]["blame"], ended["error"]["step"]) == (
        "runtime_crashed",
        "tenant",
        "registration",
    )
    again, logs = f"molecule-worker jobs retry {job}", f"molecule-worker workspaces logs {workspace}"
    assert ended["error"]["hint"] == f"what it printed went with its container: {again}, and while that waits {logs}"
    assert kinds_of(setting, workspace) == ["WORKSPACE_PROVISIONING", "WORKSPACE_PROVISION_FAILED"]
    assert row_of(setting.database, workspace).status == WorkspaceStatus.FAILED
    assert setting.compute.things() == []
    assert (setting.live_tokens(workspace), setting.open_ledger(workspace)) == (0, 0)


def test_an_image_that_cannot_be_had_leaves_nothing_and_no_container_was_tried(setting: Setting, workspace: WorkspaceId) -> None:
    set_columns(setting.database, workspace, runtime="crewai")
    ended = setting.run("workspace.provision", workspace, "failed", images=SimulatedImages(["langgraph"]))

    assert ended["error"]["step"] == "image"
    assert setting.compute.things() == []
    assert setting.open_ledger(workspace) == 0
    assert row_of(setting.database, workspace).last_sample_error == ended["error"]["message"]


def test_who_waits_for_a_build_is_shown_what_it_waits_for(setting: Setting, workspace: WorkspaceId) -> None:
    class Busy:
        def ensure(self, runtime: str, job_id: str, stopping: Stopping) -> Image | ImagePending:
            return ImagePending("another worker to build langgraph", after=60)

    assert (
        setting.run("workspace.provision", workspace, "waiting", images=Busy())["waiting_for"]
        == "another worker to build langgraph"
    )


def test_a_secret_that_does_not_open_aborts_before_any_container_exists(setting: Setting, workspace: WorkspaceId) -> None:
    with setting.database.engine.begin() as connection:
        secrets.seal_into(connection, StaticKey(bytes(32)), "API_KEY", Secret("sk-canary"), None)
    ended = setting.run("workspace.provision", workspace, "failed")

    assert (ended["error"]["message"], ended["error"]["step"]) == ("failed to decrypt global secret", "inputs")
    assert setting.compute.things() == []
    assert "canary" not in str(ended)


def test_a_missing_variable_is_named_to_its_owner(setting: Setting, workspace: WorkspaceId) -> None:
    class Demanding:
        def ensure(self, runtime: str, job_id: str, stopping: Stopping) -> Image | ImagePending:
            return Image("simulated", "runtime_config: {required_env: [API_KEY, OTHER]}")

    with setting.database.engine.begin() as connection:
        secrets.seal_into(connection, KEY, "OTHER", Secret("given"), None)
    ended = setting.run("workspace.provision", workspace, "failed", images=Demanding())

    assert ended["error"]["message"] == "missing required env: API_KEY"
    assert events_of(setting.database, workspace)[-1] == (
        "WORKSPACE_PROVISION_FAILED",
        {"error": "missing required env: API_KEY", "missing": ["API_KEY"]},
    )


def test_secrets_reach_the_container_and_no_row_of_the_job(setting: Setting, workspace: WorkspaceId) -> None:
    with setting.database.engine.begin() as connection:
        secrets.seal_into(connection, KEY, "API_KEY", Secret("sk-canary-global"), None)
        secrets.seal_into(connection, KEY, "API_KEY", Secret("sk-canary-own"), workspace)
    ended = setting.run("workspace.provision", workspace, "succeeded")

    assert setting.compute.environments[workspace]["API_KEY"].reveal() == "sk-canary-own"
    assert "canary" not in str(ended)


def test_a_failed_first_provision_keeps_volumes_that_were_there_before(setting: Setting, workspace: WorkspaceId) -> None:
    setting.run("workspace.provision", workspace, "succeeded")
    setting.compute.destroy(workspace)  # because its agent would say that it is online
    set_columns(setting.database, workspace, status=WorkspaceStatus.OFFLINE)
    setting.compute.script("ensure_started", Fault.START_FAILS)
    setting.run("workspace.provision", workspace, "failed")

    assert {thing.kind for thing in setting.compute.things()} == {"volume"}
    assert setting.open_ledger(workspace) == 2


def test_a_name_that_a_stranger_holds_ends_in_failed_and_leaves_the_stranger(setting: Setting, workspace: WorkspaceId) -> None:
    stranger = MemoryCompute(path=setting.compute.world.path, installation="another")
    with stranger.world.change() as now:
        now.containers[f"ws-{workspace[:12]}"] = Container("x", {}, [], running=True)
    ended = setting.run("workspace.provision", workspace, "failed")

    assert ended["error"]["code"] == "foreign"
    assert list(stranger.world.now().containers) == [f"ws-{workspace[:12]}"]
    assert setting.compute.things() == []


def test_a_host_that_is_busy_is_asked_again(setting: Setting, workspace: WorkspaceId) -> None:
    setting.compute.script("ensure_created", Fault.BUSY)
    ended = setting.run("workspace.provision", workspace, "succeeded")

    assert next(step for step in ended["steps"] if step["name"] == "container")["attempts"] == 2


def test_unknown_is_never_gone_for_a_delete(setting: Setting, workspace: WorkspaceId) -> None:
    setting.run("workspace.provision", workspace, "succeeded")
    setting.compute.script("inspect", Fault.UNKNOWN, times=1)
    ended = setting.run("workspace.delete", workspace, "succeeded")

    assert next(step for step in ended["steps"] if step["name"] == "absence")["attempts"] == 2


def test_a_workspace_with_children_blocks_its_delete_and_names_them(setting: Setting, workspace: WorkspaceId) -> None:
    child = add_workspace(setting.database, name="Kid", parent_id=workspace)
    ended = setting.run("workspace.delete", workspace, "blocked")

    assert f"Kid ({child})" in ended["error"]["message"]
    assert row_of(setting.database, workspace).status == WorkspaceStatus.PROVISIONING


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"runtime": "../x"}, "unknown_runtime"),
        ({"status": WorkspaceStatus.ONLINE}, "already_online"),
        ({"status": WorkspaceStatus.PAUSED}, "stopped"),
        ({"status": WorkspaceStatus.REMOVED}, "removed"),
    ],
)
def test_what_may_not_be_provisioned_is_refused_before_anything_is_made(
    setting: Setting, workspace: WorkspaceId, columns: dict[str, Any], code: str
) -> None:
    set_columns(setting.database, workspace, **columns)
    ended = setting.run("workspace.provision", workspace, "failed")

    assert ended["error"]["code"] == code
    assert setting.compute.things() == []
    assert row_of(setting.database, workspace).status == columns.get("status", WorkspaceStatus.FAILED)


@pytest.mark.parametrize("tier", [0, None])
def test_an_old_rows_tier_means_two(setting: Setting, workspace: WorkspaceId, tier: int | None) -> None:
    set_columns(setting.database, workspace, tier=tier)
    ended = setting.run("workspace.provision", workspace, "succeeded")

    assert ended["steps"][0]["facts"]["tier"] == 2


def test_a_job_whose_host_nobody_serves_waits_in_its_queue(setting: Setting, workspace: WorkspaceId) -> None:
    place(setting, workspace, "docker", "elsewhere")
    with process(setting.database, setting.world, *KINDS):
        job = setting.ask("workspace.provision", workspace)
        other = add_workspace(setting.database)
        place(setting, other, "memory", "local")
        setting.ends(setting.ask("workspace.provision", other), "succeeded")

    assert state(setting.database, job) == "queued"


def test_an_agent_that_never_registers_is_given_up_at_its_runtimes_deadline(setting: Setting, workspace: WorkspaceId) -> None:
    hasty = runtimes().model_copy(update={"default_deadline_s": 0.5})
    mute = MemoryCompute(path=setting.compute.world.path, installation="here")
    ended = setting.run("workspace.provision", workspace, "failed", compute=mute, runtimes=hasty)

    assert ended["error"]["code"] == "registration_timeout"
    assert setting.compute.things() == []


def test_a_job_belongs_to_its_workspaces_organisation_and_host(setting: Setting, workspace: WorkspaceId) -> None:
    job = setting.ask("workspace.provision", workspace)
    with setting.database.engine.connect() as connection:
        row = connection.execute(text("SELECT org, queue FROM worker.jobs WHERE id = :id"), {"id": job}).one()

    assert (row.org, row.queue) == ("acme", "memory.local")


def test_an_agent_that_registers_while_it_is_given_up_does_not_stay_online(setting: Setting, workspace: WorkspaceId) -> None:
    destroy = setting.compute.destroy

    class Late(MemoryCompute):
        """A host on which the agent registers in the last moment."""

        def destroy(self, workspace_id: str) -> None:
            set_columns(setting.database, workspace, status="online")
            destroy(workspace_id)

    hasty = runtimes().model_copy(update={"default_deadline_s": 0.5})
    late = Late(path=setting.compute.world.path, installation="here")
    setting.run("workspace.provision", workspace, "failed", compute=late, runtimes=hasty)

    assert row_of(setting.database, workspace).status == WorkspaceStatus.FAILED
    assert kinds_of(setting, workspace)[-1] == "WORKSPACE_PROVISION_FAILED"
