"""What every compute backend promises: one suite, run against the real engine and against its fake."""

from dataclasses import replace
from uuid import uuid4

import pytest

from tests.computing import bring_up
from tests.contract.worlds import Found, World
from tests.waiting import until
from worker.backends.names import config_volume, session_volume, workspace_volume
from worker.backends.tiers import Reach
from worker.domain import (
    Handle,
    JobId,
    Observation,
    Presence,
    Secret,
    ThingKind,
    WorkspaceId,
    WorkspaceSpec,
    container_name,
    short_id,
)
from worker.errors import BackendBusy, Foreign, Misconfigured, Refused, Unreachable, WorkerError

TOKEN = "tok-äöü-'\"$HOME\\ no newline at the end"
AWKWARD = "two\nlines, 'single' \"double\" $HOME `id` ${x} \\n é = end "


@pytest.fixture
def spec(world: World) -> WorkspaceSpec:
    workspace_id = str(uuid4())
    return WorkspaceSpec(
        workspace_id=WorkspaceId(workspace_id),
        job_id=JobId(str(uuid4())),
        org="acme",
        runtime="langgraph",
        tier=2,
        image=world.image,
        environment={"WORKSPACE_ID": Secret(workspace_id), "AWKWARD": Secret(AWKWARD)},
        files={".auth_token": Secret(TOKEN), "deep/er/note.md": Secret("first\n")},
        defaults={"config.yaml": "name: demo\n"},
    )


def other(spec: WorkspaceSpec, **changes: object) -> WorkspaceSpec:
    return replace(spec, job_id=JobId(str(uuid4())), **changes)  # type: ignore[arg-type]  # because the fields vary


def resting(seen: Observation) -> Observation | None:
    return seen if seen.reason == "restarting" else None


def started(world: World, spec: WorkspaceSpec) -> Handle | None:
    """None while another workspace has the host's port: maybe one of another run of these tests."""
    try:
        return world.compute.ensure_started(spec.workspace_id)
    except BackendBusy:
        return None


def namesake(spec: WorkspaceSpec) -> WorkspaceSpec:
    """Another workspace whose id begins with the same 12 characters."""
    workspace_id = spec.workspace_id[:13] + str(uuid4())[13:]
    return other(spec, workspace_id=WorkspaceId(workspace_id))


def test_a_workspace_is_planned_made_seen_and_unmade(world: World, spec: WorkspaceSpec) -> None:
    compute = world.compute
    planned = {(thing.kind, thing.name) for thing in compute.plan(spec.workspace_id, spec.runtime, spec.tier)}
    assert compute.inspect(spec.workspace_id).presence is Presence.GONE
    compute.ensure_storage(spec)
    handle = bring_up(compute, spec)
    seen = compute.inspect(spec.workspace_id)
    assert (seen.presence, seen.handle, seen.restarts) == (Presence.RUNNING, handle.id, 0)
    assert handle.url is not None
    assert handle.url.startswith("http://")
    assert seen.url == handle.url
    listed = compute.things(spec.workspace_id)
    assert {(thing.kind, thing.name) for thing in listed} == planned
    assert {(thing.workspace_id, thing.job_id) for thing in listed} == {(spec.workspace_id, spec.job_id)}
    compute.destroy(spec.workspace_id)
    assert compute.inspect(spec.workspace_id).presence is Presence.GONE
    assert {thing.kind for thing in compute.things(spec.workspace_id)} == {ThingKind.VOLUME}
    assert compute.destroy_storage(spec.workspace_id) == []
    assert compute.things(spec.workspace_id) == []
    assert [name for name in world.names() if short_id(spec.workspace_id) in name] == []
    # Twice is fine.
    compute.destroy(spec.workspace_id)
    assert compute.destroy_storage(spec.workspace_id) == []


def test_ensuring_again_leaves_one_container_made_from_the_newest_spec(world: World, spec: WorkspaceSpec) -> None:
    first = bring_up(world.compute, spec)
    newer = other(spec, environment={**spec.environment, "AWKWARD": Secret("newer")})
    second = bring_up(world.compute, newer)
    containers = [thing for thing in world.compute.things(spec.workspace_id) if thing.kind is ThingKind.CONTAINER]
    assert [(thing.name, thing.job_id) for thing in containers] == [(container_name(spec.workspace_id), newer.job_id)]
    assert first.id != second.id
    assert world.compute.inspect(spec.workspace_id).handle == second.id
    assert world.variable(spec.workspace_id, "AWKWARD") == "newer"


def test_the_token_is_there_before_the_process_starts_byte_for_byte(world: World, spec: WorkspaceSpec) -> None:
    bring_up(world.compute, spec)
    assert world.file(spec.workspace_id, ".auth_token").content == TOKEN.encode()
    assert world.file(spec.workspace_id, ".auth_token").mode == 0o600
    assert world.file(spec.workspace_id, "config.yaml").mode == 0o644
    assert world.file(spec.workspace_id, "deep/er/note.md").content == b"first\n"
    # The runtime's own first words: what it saw when it began.
    until(lambda: "token file: mode 600" in world.compute.logs(spec.workspace_id, 100), what="the runtime saw its token at once")


def test_defaults_do_not_overwrite_an_edited_file_and_files_always_do(world: World, spec: WorkspaceSpec) -> None:
    bring_up(world.compute, spec)
    assert world.file(spec.workspace_id, "config.yaml").content == b"name: demo\n"
    world.edit(spec.workspace_id, "config.yaml", "name: edited\n")
    world.edit(spec.workspace_id, "deep/er/note.md", "edited\n")
    bring_up(
        world.compute, other(spec, files={**spec.files, ".auth_token": Secret("rotated")}, defaults={"config.yaml": "name: new\n"})
    )
    assert world.file(spec.workspace_id, "config.yaml").content == b"name: edited\n"
    assert world.file(spec.workspace_id, "deep/er/note.md").content == b"first\n"
    assert world.file(spec.workspace_id, ".auth_token").content == b"rotated"


def test_the_environment_arrives_byte_for_byte(world: World, spec: WorkspaceSpec) -> None:
    bring_up(world.compute, spec)
    assert world.variable(spec.workspace_id, "AWKWARD") == AWKWARD


def test_a_crash_loop_is_not_running(world: World, spec: WorkspaceSpec) -> None:
    bring_up(world.compute, world.crashing(spec))
    until(lambda: world.compute.inspect(spec.workspace_id).restarts >= 2, what="it was restarted")
    seen = until(lambda: resting(world.compute.inspect(spec.workspace_id)), what="it rests between two lives")
    assert seen is not None
    assert (seen.presence, seen.exit_code, seen.reason) == (Presence.STOPPED, 1, "restarting")
    assert seen.url is None


def test_what_is_created_does_not_run_until_it_is_started_and_may_be_started_twice(world: World, spec: WorkspaceSpec) -> None:
    made = world.compute.ensure_created(spec)
    seen = world.compute.inspect(spec.workspace_id)
    assert (seen.presence, seen.handle, seen.url, seen.reason) == (Presence.STOPPED, made, None, None)
    first = world.compute.ensure_started(spec.workspace_id)
    assert world.compute.ensure_started(spec.workspace_id) == first
    assert first.id == made


def test_nothing_is_started_that_was_not_created(world: World, spec: WorkspaceSpec) -> None:
    with pytest.raises(WorkerError) as failure:
        world.compute.ensure_started(spec.workspace_id)
    assert failure.value.code == "container_gone"


def test_a_failed_start_leaves_no_container(world: World, spec: WorkspaceSpec) -> None:
    with pytest.raises(WorkerError) as failure:
        bring_up(world.compute, world.unstartable(spec))
    assert failure.value.code == "image_broken"
    assert world.compute.inspect(spec.workspace_id).presence is Presence.GONE
    assert ThingKind.CONTAINER not in {thing.kind for thing in world.compute.things(spec.workspace_id)}


def test_unknown_is_never_gone(world: World, spec: WorkspaceSpec) -> None:
    silent = world.silent()
    assert silent.inspect(spec.workspace_id).presence is Presence.UNKNOWN
    for question in (
        lambda: silent.destroy(spec.workspace_id),
        lambda: silent.destroy_storage(spec.workspace_id),
        silent.things,
        lambda: silent.ensure_storage(spec),
        lambda: bring_up(silent, spec),
        lambda: silent.logs(spec.workspace_id, 1),
    ):
        with pytest.raises(Unreachable):
            question()


def test_storage_in_use_names_its_holder_and_stays(world: World, spec: WorkspaceSpec) -> None:
    world.compute.ensure_storage(spec)
    holder = f"holder-{uuid4().hex[:8]}"
    world.occupy(holder, volume=config_volume(spec.workspace_id))
    assert world.compute.destroy_storage(spec.workspace_id) == [holder]
    assert [thing.name for thing in world.compute.things(spec.workspace_id)] == [config_volume(spec.workspace_id)]


def test_storage_of_another_job_is_spared(world: World, spec: WorkspaceSpec) -> None:
    world.compute.ensure_storage(spec)
    later = other(spec, runtime="claude-code")
    world.compute.ensure_storage(later)
    assert world.compute.destroy_storage(spec.workspace_id, made_by=later.job_id) == []
    kept = {thing.name for thing in world.compute.things(spec.workspace_id)}
    assert kept == {config_volume(spec.workspace_id), workspace_volume(spec.workspace_id)}


def test_a_runtime_with_sessions_has_a_third_volume(world: World, spec: WorkspaceSpec) -> None:
    claude = other(spec, runtime="claude-code")
    bring_up(world.compute, claude)
    planned = {thing.name for thing in world.compute.plan(spec.workspace_id, "claude-code", 2)}
    assert session_volume(spec.workspace_id) in planned
    assert {thing.name for thing in world.compute.things(spec.workspace_id)} == planned
    world.compute.destroy(spec.workspace_id)
    assert world.compute.destroy_storage(spec.workspace_id) == []
    assert world.compute.things(spec.workspace_id) == []


def test_tier_1_has_its_configuration_and_nothing_else(world: World, spec: WorkspaceSpec) -> None:
    bring_up(world.compute, other(spec, tier=1, runtime="claude-code"))
    assert world.compute.inspect(spec.workspace_id).presence is Presence.RUNNING
    until(lambda: "token file: mode 600" in world.compute.logs(spec.workspace_id, 100))
    assert {thing.name for thing in world.compute.things(spec.workspace_id)} == {
        config_volume(spec.workspace_id),
        container_name(spec.workspace_id),
    }


def test_a_foreign_name_is_refused_and_untouched(world: World, spec: WorkspaceSpec) -> None:
    name = container_name(spec.workspace_id)
    stranger = world.occupy(name)
    for attempt in (lambda: bring_up(world.compute, spec), lambda: world.compute.destroy(spec.workspace_id)):
        with pytest.raises(Foreign):
            attempt()
    assert world.occupant(name) == stranger
    assert world.compute.inspect(spec.workspace_id).presence is Presence.UNKNOWN
    assert world.compute.things(spec.workspace_id) == []
    with pytest.raises(Refused):
        world.compute.logs(spec.workspace_id, 10)


def test_two_installations_on_one_host_do_not_see_each_other(world: World, spec: WorkspaceSpec) -> None:
    handle = bring_up(world.compute, spec)
    stranger = world.installation()
    assert stranger.things() == []
    assert stranger.inspect(spec.workspace_id).presence is Presence.UNKNOWN
    with pytest.raises(Foreign):
        bring_up(stranger, spec)
    with pytest.raises(Foreign):
        stranger.destroy(spec.workspace_id)
    with pytest.raises(Foreign):
        stranger.ensure_storage(spec)
    assert stranger.destroy_storage(spec.workspace_id) == []
    assert world.compute.inspect(spec.workspace_id).handle == handle.id
    assert len(world.compute.things(spec.workspace_id)) == 3


def test_ids_that_begin_alike_never_delete_each_other(world: World, spec: WorkspaceSpec) -> None:
    handle = bring_up(world.compute, spec)
    twin = namesake(spec)
    with pytest.raises(Foreign):
        bring_up(world.compute, twin)
    world.compute.destroy(twin.workspace_id)
    assert world.compute.destroy_storage(twin.workspace_id) == []
    assert world.compute.inspect(twin.workspace_id).presence is Presence.GONE
    assert world.compute.inspect(spec.workspace_id).handle == handle.id
    assert len(world.compute.things(spec.workspace_id)) == 3


@pytest.mark.parametrize(
    ("tier", "reach"),
    [
        (1, Reach()),
        (2, Reach()),
        (3, Reach(privileged=True, host_pids=True)),
        (4, Reach(privileged=True, host_pids=True, host_network=True, engine_socket=True)),
    ],
)
def test_a_tier_has_of_the_host_what_it_says_and_lies_in_the_same_files(
    world: World, spec: WorkspaceSpec, tier: int, reach: Reach
) -> None:
    made = world.compute.ensure_created(other(spec, tier=tier, runtime="claude-code"))
    assert world.reach(spec.workspace_id) == reach
    seen = world.compute.inspect(spec.workspace_id)
    assert (seen.presence, seen.handle, seen.url, seen.reason) == (Presence.STOPPED, made, None, None)
    assert world.file(spec.workspace_id, ".auth_token") == Found(TOKEN.encode(), 0o600)
    planned = {thing.name for thing in world.compute.plan(spec.workspace_id, "claude-code", tier)}
    assert {thing.name for thing in world.compute.things(spec.workspace_id)} == planned


@pytest.mark.parametrize("tier", [3, 4])
def test_a_privileged_tier_starts_or_it_is_said_whose_fault_it_is_and_nothing_stays(
    world: World, spec: WorkspaceSpec, tier: int
) -> None:
    made = world.compute.ensure_created(other(spec, tier=tier))
    try:
        handle = until(lambda: started(world, spec), what="its turn on this host")
    except Misconfigured as refusal:
        assert not world.grants_privileges()
        assert refusal.code == "privileges_refused"
        assert refusal.message == "start container: the engine cannot give a container more privileges than it has itself"
        assert "tier 1 or 2" in refusal.hint
        assert world.compute.inspect(spec.workspace_id).presence is Presence.GONE
        assert {thing.kind for thing in world.compute.things(spec.workspace_id)} == {ThingKind.VOLUME}
    else:
        assert handle is not None
        assert handle.url is not None
        assert world.compute.ensure_started(spec.workspace_id) == handle
        seen = world.compute.inspect(spec.workspace_id)
        assert (seen.presence, seen.handle, seen.url) == (Presence.RUNNING, made, handle.url)


def test_one_workspace_at_a_time_has_the_host_s_port(world: World, spec: WorkspaceSpec) -> None:
    holder = world.hold_host_port()
    made = world.compute.ensure_created(other(spec, tier=4))
    with pytest.raises(BackendBusy) as refusal:
        world.compute.ensure_started(spec.workspace_id)
    assert refusal.value.code == "port_taken"
    assert holder not in refusal.value.message + refusal.value.hint
    # It waits for its turn as it is; who has a network of its own need not wait.
    assert world.compute.inspect(spec.workspace_id).handle == made
    bring_up(world.compute, other(spec, workspace_id=WorkspaceId(str(uuid4()))))


@pytest.mark.parametrize("path", ["../token", "/etc/passwd", "a/../../b", "", "a//b"])
def test_a_file_that_leads_out_of_its_folder_is_refused(world: World, spec: WorkspaceSpec, path: str) -> None:
    for bad in (other(spec, files={path: Secret("x")}), other(spec, defaults={path: "x"})):
        with pytest.raises(Refused):
            bring_up(world.compute, bad)
        assert ThingKind.CONTAINER not in {thing.kind for thing in world.compute.things(spec.workspace_id)}


def test_logs_of_nothing_are_refused(world: World, spec: WorkspaceSpec) -> None:
    with pytest.raises(Refused):
        world.compute.logs(spec.workspace_id, 10)
