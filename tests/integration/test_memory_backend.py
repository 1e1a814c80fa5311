"""What the in-memory backend does beside the contract: it plays agents, it fails on demand, it outlives its process."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from tests.computing import bring_up
from tests.listening import platform
from tests.waiting import until
from worker.backends.memory import MemoryCompute
from worker.backends.memory_world import Fault
from worker.domain import JobId, Presence, Secret, WorkspaceId, WorkspaceSpec
from worker.errors import BackendBusy, Unreachable


def spec(workspace_id: str | None = None) -> WorkspaceSpec:
    found = WorkspaceId(workspace_id or str(uuid4()))
    return WorkspaceSpec(
        workspace_id=found,
        job_id=JobId(str(uuid4())),
        org="acme",
        runtime="langgraph",
        tier=2,
        image="demo",
        environment={"API_KEY": Secret("sk-environment")},
        files={".auth_token": Secret("the-token")},
        defaults={"config.yaml": "name: demo\n"},
    )


@contextmanager
def backend(path: Path, port: int | None = None) -> Iterator[MemoryCompute]:
    url = f"http://127.0.0.1:{port}" if port else None
    found = MemoryCompute(path=path, installation="here", platform_url=url, heartbeat_s=0.1)
    try:
        yield found
    finally:
        found.close()


def test_a_started_workspace_registers_until_it_is_heard_and_then_beats(tmp_path: Path) -> None:
    one = spec()
    with platform(refusals=1) as heard, backend(tmp_path / "world.json", heard.port) as compute:
        bring_up(compute, one)
        until(lambda: len(heard.of("/registry/heartbeat")) >= 2)
        assert len(heard.of("/registry/register")) == 2
        assert {call.bearer for call in heard.calls} == {"Bearer the-token"}
        assert heard.of("/registry/register")[0].body["id"] == one.workspace_id
        assert heard.of("/registry/heartbeat")[0].body["workspace_id"] == one.workspace_id
        compute.destroy(one.workspace_id)
        quiet = until(lambda: len(heard.calls))
        until(lambda: compute.inspect(one.workspace_id).presence is Presence.GONE)
        # One call may have been on its way when the container went.
        compute.close()
        assert len(heard.calls) <= quiet + 1


def test_a_workspace_made_anew_registers_anew_with_the_new_token(tmp_path: Path) -> None:
    one = spec()
    with platform() as heard, backend(tmp_path / "world.json", heard.port) as compute:
        bring_up(compute, one)
        until(lambda: heard.of("/registry/heartbeat"))
        bring_up(compute, replace(one, files={".auth_token": Secret("newer")}))
        until(lambda: [call for call in heard.of("/registry/register") if call.bearer == "Bearer newer"])


def test_a_crashing_workspace_never_registers(tmp_path: Path) -> None:
    dying, living = spec(), spec()
    with platform() as heard, backend(tmp_path / "world.json", heard.port) as compute:
        compute.script("ensure_started", Fault.DIES)
        bring_up(compute, dying)
        bring_up(compute, living)
        until(lambda: len(heard.of("/registry/heartbeat")) >= 3)
        assert {call.body["id"] for call in heard.of("/registry/register")} == {living.workspace_id}


CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.computing import bring_up
from tests.integration.test_memory_backend import backend, spec
with backend(Path(sys.argv[1]), int(sys.argv[2])) as compute:
    bring_up(compute, spec(sys.argv[3]))
    print("started", flush=True)
    sys.stdin.read()
"""


def test_agents_outlive_the_process_that_played_them(tmp_path: Path) -> None:
    path, workspace_id = tmp_path / "world.json", str(uuid4())
    with platform() as heard, backend(path, heard.port) as compute:
        argv = [sys.executable, "-c", CHILD, str(path), str(heard.port), workspace_id]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"started\n"
            until(lambda: heard.of("/registry/heartbeat"))
            child.send_signal(signal.SIGKILL)
        heard.calls.clear()
        assert compute.inspect(workspace_id).presence is Presence.RUNNING
        until(lambda: heard.of("/registry/heartbeat"))


def test_two_processes_do_not_play_the_same_agents(tmp_path: Path) -> None:
    one = spec()
    with platform() as heard, backend(tmp_path / "w.json", heard.port) as first, backend(tmp_path / "w.json", heard.port) as second:
        bring_up(first, one)
        second.inspect(one.workspace_id)
        until(lambda: len(heard.of("/registry/heartbeat")) >= 5)
        assert len(heard.of("/registry/register")) == 1


def test_faults_come_as_scripted_and_then_pass(tmp_path: Path) -> None:
    one = spec()
    with backend(tmp_path / "world.json") as compute:
        compute.script("ensure_created", Fault.BUSY, times=2)
        compute.script("inspect", Fault.UNKNOWN)
        for _ in range(2):
            with pytest.raises(BackendBusy):
                bring_up(compute, one)
        assert compute.inspect(one.workspace_id).presence is Presence.UNKNOWN
        assert compute.inspect(one.workspace_id).presence is Presence.GONE
        bring_up(compute, one)
        compute.script("destroy", Fault.LOST)
        with pytest.raises(Unreachable):
            compute.destroy(one.workspace_id)
        assert compute.inspect(one.workspace_id).presence is Presence.GONE


def test_the_world_is_its_owner_s_alone_and_holds_no_environment(tmp_path: Path) -> None:
    path = tmp_path / "world.json"
    with backend(path) as compute:
        bring_up(compute, spec())
    assert path.stat().st_mode & 0o777 == 0o600
    assert "sk-environment" not in path.read_text()


def test_workers_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    specs = [spec() for _ in range(24)]
    with backend(tmp_path / "world.json") as one, backend(tmp_path / "world.json") as two, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda pair: bring_up((one, two)[pair[0] % 2], pair[1]), enumerate(specs)))
        assert len(one.things()) == 3 * len(specs)
