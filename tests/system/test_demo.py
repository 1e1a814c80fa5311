"""`make demo` that a person interrupts: what it made goes, or it says how."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from docker import APIClient
from docker.utils import kwargs_from_env

from tests.conftest import missing
from tests.system.test_up import left
from tests.waiting import until
from worker import demo
from worker.backends.names import INSTALLATION
from worker.demo_made import Made
from worker.images.local import LABEL

ROOT = Path(__file__).parent.parent.parent
NO_ENGINE = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}


@dataclass
class Demo:
    """The demo on a terminal of its own: what it says is read until something was said."""

    process: "subprocess.Popen[str]"
    said: list[str] = field(default_factory=list)

    def says(self, part: str) -> None:
        assert self.process.stderr is not None
        while not self.said or part not in self.said[-1]:
            line = self.process.stderr.readline()
            assert line, "".join(self.said)
            self.said.append(line)

    @property
    def folder(self) -> Path:
        found = re.search(r"its log: (/.*)/daemon\.log", "".join(self.said))
        assert found, self.said
        return Path(found[1])

    def interrupted(self) -> int:
        """Ctrl-C, as a terminal sends it to the whole group; the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.ended()

    def ended(self) -> int:
        _, rest = self.process.communicate(timeout=60)
        self.said += rest.splitlines(keepends=True)
        return self.process.returncode


def begun(**variables: str) -> Demo:
    around = {**os.environ, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(ROOT), **variables}
    argv = [sys.executable, "-m", "worker.demo"]
    none = subprocess.DEVNULL
    return Demo(
        subprocess.Popen(
            argv, env=around, cwd=ROOT, stdin=none, stdout=none, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
    )


def after_the_provision(running: Demo) -> None:
    running.says("workspaces delete")


@pytest.fixture
def simulated() -> Iterator[Demo]:
    running = begun(**NO_ENGINE)
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.communicate()


def test_ctrl_c_removes_all_that_the_demo_made_and_says_so_in_one_line(simulated: Demo) -> None:
    after_the_provision(simulated)

    assert simulated.interrupted() == 130
    assert simulated.said[-1] == "interrupted: removing what the demo made … it is gone\n"
    assert "Traceback" not in "".join(simulated.said)
    assert not simulated.folder.exists()
    assert left(simulated.folder) == []


def test_ctrl_c_before_the_stack_is_ready_leaves_nothing_either(simulated: Demo) -> None:
    simulated.says("molecule-worker up")

    assert simulated.interrupted() == 130
    assert not simulated.folder.exists()
    assert left(simulated.folder) == []


def test_a_second_ctrl_c_leaves_now_and_says_what_removes_the_rest(simulated: Demo) -> None:
    after_the_provision(simulated)
    daemon = int(json.loads((simulated.folder / "stack.json").read_text())["pid"])
    # Frozen, so that the removal waits for it.
    os.kill(daemon, signal.SIGSTOP)
    os.killpg(simulated.process.pid, signal.SIGINT)
    assert simulated.process.stderr is not None
    seen = ""
    while "removing what the demo made" not in seen:
        seen += simulated.process.stderr.read(1)

    assert simulated.interrupted() == 130
    said = simulated.said[-1]
    assert said == f"not all of it is gone; what removes the rest: kill {daemon}; rm -r {simulated.folder}\n"

    os.kill(daemon, signal.SIGCONT)
    until(lambda: left(simulated.folder) == [], within=30, what="the daemon has left")
    shutil.rmtree(simulated.folder)


def test_ctrl_c_removes_containers_volumes_images_and_the_network() -> None:
    busybox, why = demo._docker_ready()
    if busybox is None:
        missing(why)
        return
    running = begun()
    after_the_provision(running)
    client = APIClient(**kwargs_from_env(), version="auto")
    [network] = client.networks(names=[running.folder.name])
    [container] = client.inspect_network(network["Id"])["Containers"]
    installation = client.inspect_container(container)["Config"]["Labels"][INSTALLATION]

    assert running.interrupted() == 130
    assert running.said[-1].endswith("it is gone\n")
    assert client.networks(names=[running.folder.name]) == []
    mine = {"label": f"{INSTALLATION}={installation}"}
    assert (client.containers(all=True, filters=mine), client.volumes(filters=mine)["Volumes"] or []) == ([], [])
    assert client.images(filters={"label": f"{LABEL}installation={installation}"}) == []
    assert not running.folder.exists()
    client.close()


class Stubborn(Made):
    """Its removal is interrupted at once."""

    def remove(self) -> None:
        raise KeyboardInterrupt


def test_a_second_ctrl_c_tells_the_daemon_to_leave_however_early_it_comes(tmp_path: Path) -> None:
    daemon = subprocess.Popen(["sleep", "600"])

    assert demo._removed(Stubborn(tmp_path, on_docker=False, daemon=daemon)).startswith("not all of it is gone")
    assert daemon.wait(10) == -signal.SIGTERM
