"""docker/compose.yaml as somebody who follows the README starts it, under names of this test's own; all of it is gone at the end."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import yaml
from docker import APIClient

from tests.conftest import missing
from tests.demo_image import BUSYBOX, DEMO
from tests.system.house import RUNTIME
from tests.system.stand_in import ROOT
from tests.waiting import until
from worker.forge import NAME, ORGANISATION, make_template

#: Seconds for what takes about ten on an idle machine.
_PATIENCE: Final = 90.0
_SOCKET: Final = Path("/var/run/docker.sock")
_FORGE_PORT: Final = 8765
#: Git over plain HTTP is for loopback alone, so each container that builds images has a server of its own.
_FORGE: Final = f"""
from pathlib import Path
from threading import Event
from worker.forge import Forge
Forge(Path("/tmp/git"), port={_FORGE_PORT}).publish("{RUNTIME}", Path("/template"))
Event().wait()
"""


#: Which of the addresses in its arguments takes a connection.
_PROBE: Final = """
import json, socket, sys
def open_at(address):
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True
print(json.dumps([open_at(address) for address in sys.argv[1:]]))
"""


@dataclass(frozen=True)
class Composed:
    """A project of compose: its variables, and the engine that it runs on."""

    command: Sequence[str]
    variables: Mapping[str, str]
    project: str
    client: APIClient

    def __call__(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """`docker-compose …`; what it said is shown where it fails and should not."""
        done = subprocess.run(
            [*self.command, *arguments],
            env=dict(self.variables),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done

    def containers(self, service: str | None = None) -> list[dict[str, Any]]:
        """What the engine knows of the project's containers."""
        labels = [f"com.docker.compose.project={self.project}", *([f"com.docker.compose.service={service}"] if service else [])]
        return [self.client.inspect_container(found["Id"]) for found in self.client.containers(all=True, filters={"label": labels})]

    def worker(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """`molecule-worker …` in a container that drives jobs."""
        return self("exec", "-T", "jobs", "molecule-worker", *arguments, check=check)

    def values(self, statement: str, *, check: bool = True) -> list[str]:
        """What the database says, by words."""
        asked = ("psql", "-U", "molecule", "-d", "molecule", "-Atc", statement)
        return self("exec", "-T", "postgres", *asked, check=check).stdout.split()

    def up(self, *, jobs: int) -> None:
        """Start all of it and wait until each container that stays is healthy."""
        started = self("up", "-d", "--scale", f"jobs={jobs}", check=False)
        try:
            assert started.returncode == 0, started.stderr
            until(lambda: set(self.health().values()) == {"healthy"}, within=_PATIENCE, what="all healthy")
        except AssertionError as error:
            error.add_note(f"{self.health()}\n{self('logs', '--no-color', '--tail=20').stdout}")
            raise

    def health(self) -> dict[str, str]:
        """Each container that stays → what its health check says."""
        return {
            found["Name"]: found["State"].get("Health", {}).get("Status", found["State"]["Status"])
            for found in self.containers()
            if found["Config"]["Labels"]["com.docker.compose.service"] != "migrate"
        }

    def serve_templates(self) -> None:
        """A server of templates in each container that drives jobs."""
        for found in self.containers("jobs"):
            started = self.client.exec_create(found["Id"], ["python", "-c", _FORGE])["Id"]
            self.client.exec_start(started, detach=True)
            head = f"http://127.0.0.1:{_FORGE_PORT}/api/v1/repos/{ORGANISATION}/{NAME}{RUNTIME}/branches/main"
            asked = ["python", "-c", f"import httpx; httpx.get({head!r}).raise_for_status()"]
            until(lambda ident=found["Id"], asked=asked: self._succeeds(ident, asked), what="the template is served")  # type: ignore[misc]

    def reached_from(self, network: str, *addresses: str) -> list[bool]:
        """For each address, whether a container on that network alone gets a connection."""
        argv = ["docker", "run", "--rm", "--network", network, "--entrypoint", "python", self.variables["WORKER_IMAGE"]]
        asked = subprocess.run([*argv, "-c", _PROBE, *addresses], capture_output=True, text=True, check=True, timeout=60)
        found: list[bool] = json.loads(asked.stdout)
        return found

    def secret(self, name: str) -> str:
        """What a file of the secrets holds."""
        return (Path(self.variables["SECRETS_DIR"]) / name).read_text()

    def settled(self, part: str = "services") -> dict[str, Any]:
        """A part of the file as compose understood it, by name."""
        found: dict[str, Any] = yaml.safe_load(self("config").stdout)[part]
        return found

    def _succeeds(self, ident: str, command: list[str]) -> bool:
        asked = self.client.exec_create(ident, command)["Id"]
        self.client.exec_start(asked)
        return bool(self.client.exec_inspect(asked)["ExitCode"] == 0)


def program() -> list[str]:
    """Either generation of compose; the test is skipped where there is none."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        missing("docker-compose (sudo make docker-engine)")
    return ["docker", "compose"]


@contextmanager
def composed(client: APIClient, folder: Path, *, base: str, worker: str) -> Iterator[Composed]:
    """The project with secrets of its own, not started yet."""
    if not BUSYBOX.exists() or shutil.which("git") is None:
        missing("git or a static busybox (sudo make docker-engine)")
    mark = uuid4().hex[:8]
    template = make_template(DEMO, BUSYBOX, folder / "template")
    (template / "NONCE").write_text(mark)
    template.chmod(0o755)
    subprocess.run(["sh", "docker/make-secrets.sh", str(folder / "secrets")], cwd=ROOT, check=True, capture_output=True)
    variables = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ},
        "DOCKER_GID": str(_SOCKET.stat().st_gid),
        "WORKER_IMAGE": worker,
        "POSTGRES_IMAGE": base,
        "REDIS_IMAGE": base,
        "SECRETS_DIR": str(folder / "secrets"),
        "WORKSPACES_NETWORK": f"molecule-compose-{mark}-workspaces",
        "TEMPLATE_REPO_PREFIX": f"http://127.0.0.1:{_FORGE_PORT}/{ORGANISATION}/{NAME}",
        "TEMPLATE": str(template),
    }
    project = f"molecule-compose-{mark}"
    files = ["-f", "docker/compose.yaml", "-f", "tests/system/compose.yaml"]
    built = Composed([*program(), "-p", project, *files], variables, project, client)
    try:
        yield built
    finally:
        _swept(built)


def _swept(built: Composed) -> None:
    """Workspaces first, because a network with somebody on it stays; then the images that were built for them."""
    client = built.client
    images = built.values("SELECT reference FROM worker.builds WHERE reference IS NOT NULL", check=False)
    for found in client.containers(all=True, filters={"network": built.variables["WORKSPACES_NETWORK"]}):
        client.remove_container(found["Id"], force=True, v=True)
    built("down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)
    for image in images:
        client.remove_image(image, force=True)
