"""`make demo`: a workspace lives and dies in front of you, and nothing is left.

It uses the same commands as everybody else, against a stack of its own in a folder of its own; the template repository is
served by a small git server beside it, so that no registry and no network is needed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Final

import docker
import httpx
from sqlalchemy import text

from config import settings as environment
from worker import embedded, stack
from worker.assembly import compute_of, installation_of
from worker.backends.docker import DockerCompute
from worker.backends.docker_shape import Shape
from worker.backends.memory import MemoryCompute
from worker.cli import words
from worker.domain import Secret, ThingKind
from worker.errors import WorkerError
from worker.forge import Forge, make_template
from worker.images.local import LABEL
from worker.store import connect

RUNTIME: Final = "langgraph"
_TEMPLATE: Final = Path(__file__).parent.parent / "docker" / "demo-runtime"
_COMMAND: Final = Path(sys.executable).with_name("molecule-worker")
#: Seconds for the stack to be ready; the first time Postgres makes its files.
_READY_S: Final = 60.0


class DemoFailed(Exception):
    """Something that the demo promises was not true."""


def main() -> int:
    """Run it; 0 only when every step was seen to be true."""
    began = monotonic()
    try:
        busybox, why = _docker_ready()
        if busybox is None:
            words.say(f"{why}: showing a SIMULATED workspace, on the in-memory backend")
        with _stage(busybox) as around:
            _show(around, simulated=busybox is None)
    except (DemoFailed, WorkerError) as error:
        words.say(f"error: the demo is not true here: {error}")
        if isinstance(error, WorkerError) and error.hint:
            words.say(f"hint: {error.hint}")
        return words.FAILED
    words.say(f"\nthe demo is over; it took {monotonic() - began:.0f} s")
    return words.DONE


def _docker_ready() -> tuple[Path | None, str]:
    """A static busybox, when an engine answers that can use it; otherwise None and the reason in one line."""
    if shutil.which("git") is None:
        return None, "there is no git here"
    own = environment.load()
    probe = DockerCompute(shape=_shape(), network=own.network)
    try:
        probe.version()
    except WorkerError:
        return None, "no Docker engine answers (on Debian, as root: make docker-engine)"
    finally:
        probe.close()
    found = shutil.which("busybox")
    if found is None or not _is_static(Path(found)):
        return None, "there is no static busybox for the demo's image (on Debian: apt-get install busybox-static)"
    return Path(found), ""


def _shape() -> Shape:
    return Shape(installation="demo-probe")


def _is_static(program: Path) -> bool:
    """An ELF file without an interpreter: it needs no library of this machine."""
    return b"ld-linux" not in program.read_bytes()[:4096]


@contextmanager
def _stage(busybox: Path | None) -> Iterator[Mapping[str, str]]:
    """The stack and the daemon, in a folder and a network of their own; both go with the image when all was well."""
    parent = environment.load({}).state_dir.parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="molecule-worker-demo-", dir=parent))
    around = {
        **{
            name: value
            for name, value in os.environ.items()
            if name not in {"DATABASE_URL", "REDIS_URL", "PLATFORM_URL", "MOLECULE_IMAGE_REGISTRY"}
        },
        "MOLECULE_WORKER_STATE_DIR": str(folder),
        "MOLECULE_WORKER_RECEIVER_ADDR": f"127.0.0.1:{embedded.free_port()}",
        "MOLECULE_WORKER_NETWORK": folder.name,
        "MOLECULE_BACKEND": "memory" if busybox is None else "docker",
        "MOLECULE_LOCAL_BUILD_CACHE": str(folder / "builds"),
    }
    if busybox is None:
        with _daemon(folder, around):
            yield around
        shutil.rmtree(folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        forge = Forge(Path(scratch) / "git")
        try:
            forge.publish(RUNTIME, make_template(_TEMPLATE, busybox, Path(scratch) / "template"))
            around["MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX"] = forge.prefix
            with _daemon(folder, around):
                installation = _installation(folder)
                yield around
            _sweep(folder, installation)
        finally:
            forge.close()
    shutil.rmtree(folder)


def _installation(folder: Path) -> str:
    engine = connect.open_engine(stack.database_url(stack.running(folder)), name="demo", size=1)
    try:
        return installation_of(engine)
    finally:
        engine.dispose()


def _sweep(folder: Path, installation: str) -> None:
    """The demo's image and network: an installation would keep both, and this one is not coming back."""
    client = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto")
    try:
        for image in client.images(filters={"label": f"{LABEL}installation={installation}"}):
            client.remove_image(image["Id"], force=True)
        for network in client.networks(names=[folder.name]):
            client.remove_network(network["Id"])
    finally:
        client.close()


@contextmanager
def _daemon(folder: Path, around: Mapping[str, str]) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "daemon.log"
    words.say(f"$ molecule-worker up          (its log: {log})")
    with log.open("wb") as output:
        process = subprocess.Popen([_COMMAND, "up"], env=around, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _await_ready(folder, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_ready(folder: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = monotonic() + _READY_S
    while monotonic() < end:
        if process.poll() is not None:
            raise DemoFailed(f"the daemon ended with exit code {process.returncode}; see {log}")
        found = stack.running(folder)
        if found and _serves(found):
            return
        Event().wait(0.1)
    raise DemoFailed(f"the daemon was not ready within {_READY_S:.0f} s; see {log}")


def _serves(found: Mapping[str, str]) -> bool:
    engine = connect.open_engine(Secret(found["DATABASE_URL"]), name="demo", size=1)
    try:
        with engine.connect() as connection:
            if connection.execute(text("SELECT to_regclass('worker.processes')")).scalar() is None:
                return False
            alive = "SELECT count(*) FROM worker.processes WHERE lease_until > clock_timestamp() AND cardinality(queues) > 0"
            return bool(connection.execute(text(alive)).scalar_one())
    finally:
        engine.dispose()


def _show(around: Mapping[str, str], *, simulated: bool) -> None:
    workspace = _run(around, "workspaces", "create", "--name", "demo", "--runtime", RUNTIME, "--wait").strip()
    sys.stdout.write(_run(around, "workspaces", "show", workspace))
    own = environment.load({**around, **stack.running(Path(around["MOLECULE_WORKER_STATE_DIR"]))})
    engine = connect.open_engine(stack.database_url(stack.running(own.state_dir)), name="demo", size=1)
    compute = compute_of(own, engine)
    try:
        _expect(any(thing.kind is ThingKind.CONTAINER for thing in compute.things(workspace)), "no container is there")
        if not simulated:
            _ask_agent(compute, workspace)
        _run(around, "workspaces", "delete", workspace, "--wait")
        left = [thing.name for thing in compute.things()]
        _expect(not left, f"left behind: {', '.join(left)}")
    finally:
        compute.close()
        engine.dispose()
    words.say("nothing is left: a fresh listing shows no container and no volume of this installation")


def _ask_agent(compute: DockerCompute | MemoryCompute, workspace: str) -> None:
    url = compute.inspect(workspace).url
    answer = httpx.get(f"{url}/.well-known/agent-card.json", timeout=5.0, trust_env=False)
    _expect(answer.status_code == httpx.codes.OK, f"the agent answered {answer.status_code}")
    words.say(f"the agent answers at {url}: {answer.json()['name']}")


def _run(around: Mapping[str, str], *arguments: str) -> str:
    words.say(f"\n$ molecule-worker {' '.join(arguments)}")
    done = subprocess.run([_COMMAND, *arguments], env=around, stdout=subprocess.PIPE, text=True, check=False)
    _expect(done.returncode == words.DONE, f"`{' '.join(arguments[:2])}` ended with exit code {done.returncode}")
    return done.stdout


def _expect(true: object, otherwise: str) -> None:
    if not true:
        raise DemoFailed(otherwise)


if __name__ == "__main__":
    sys.exit(main())
