"""`make demo`: a workspace lives and dies in front of you, and nothing is left.

It uses the same commands as everybody else, against a stack of its own in a folder of its own; the template repository is
served by a small git server beside it, so that no registry and no network is needed.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Final, NoReturn

import click
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
from worker.demo_made import Made
from worker.domain import Secret, ThingKind
from worker.errors import WorkerError
from worker.forge import Forge, make_template
from worker.store import connect
from worker.supervisor import stop_signals

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
    _interrupted_by_any_signal()
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
    except KeyboardInterrupt as interrupt:
        words.say(": ".join(map(str, interrupt.args)) or "interrupted")
        return words.INTERRUPTED
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
    """The stack and the daemon, in a folder and a network of their own; all that was made goes, unless the demo was not true."""
    parent = environment.load({}).state_dir.parent
    parent.mkdir(parents=True, exist_ok=True)
    made = Made(Path(tempfile.mkdtemp(prefix="molecule-worker-demo-", dir=parent)), on_docker=busybox is not None)
    try:
        with _templates(busybox) as prefix:
            around = {**_around(made), "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX": prefix}
            _start_daemon(made, around)
            made.installation = _installation(made.folder)
            yield around
        made.remove()
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(_removed(made)) from interrupt
    except BaseException:
        made.end_daemon()
        words.say(f"to remove what the demo made: {made.left()}")
        raise


def _around(made: Made) -> dict[str, str]:
    ours = {"DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL", "PLATFORM_URL", "MOLECULE_IMAGE_REGISTRY"}
    return {
        **{name: value for name, value in os.environ.items() if name not in ours},
        "MOLECULE_WORKER_STATE_DIR": str(made.folder),
        "MOLECULE_WORKER_RECEIVER_ADDR": f"127.0.0.1:{embedded.free_port()}",
        "MOLECULE_WORKER_NETWORK": made.folder.name,
        "MOLECULE_BACKEND": "docker" if made.on_docker else "memory",
        "MOLECULE_LOCAL_BUILD_CACHE": str(made.folder / "builds"),
    }


@contextmanager
def _templates(busybox: Path | None) -> Iterator[str]:
    """The prefix of a git server that serves the demo's template; empty where nothing is built."""
    if busybox is None:
        yield ""
        return
    with tempfile.TemporaryDirectory() as scratch:
        forge = Forge(Path(scratch) / "git")
        try:
            forge.publish(RUNTIME, make_template(_TEMPLATE, busybox, Path(scratch) / "template"))
            yield forge.prefix
        finally:
            forge.close()


def _removed(made: Made) -> str:
    """After Ctrl-C: what became of it. Another one ends the removal, and so does an engine that refuses."""
    try:
        click.echo("interrupted: removing what the demo made … ", err=True, nl=False)
        made.remove()
    except (KeyboardInterrupt, docker.errors.DockerException, OSError):
        if made.daemon is not None:
            made.daemon.terminate()  # also where it was told before: twice means now
        return f"not all of it is gone; what removes the rest: {made.left()}"
    return "it is gone"


def _installation(folder: Path) -> str:
    engine = connect.open_engine(stack.database_url(stack.running(folder)), name="demo", size=1)
    try:
        return installation_of(engine)
    finally:
        engine.dispose()


def _start_daemon(made: Made, around: Mapping[str, str]) -> None:
    log = made.folder / "daemon.log"
    words.say(f"$ molecule-worker up          (its log: {log})")
    with log.open("wb") as output, _undisturbed():
        # In a session of its own, because a terminal's Ctrl-C is for us: it goes on until we have cleaned up behind it.
        made.daemon = subprocess.Popen(
            [_COMMAND, "up"], env=around, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    _await_ready(made.folder, made.daemon, log)


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


def _interrupted_by_any_signal() -> None:
    """A closed terminal and a SIGTERM clean up, as Ctrl-C does."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    for number in stop_signals():
        signal.signal(number, interrupt)


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
    done = _output_of([str(_COMMAND), *arguments], around)
    _expect(done.returncode == words.DONE, f"`{' '.join(arguments[:2])}` ended with exit code {done.returncode}")
    return done.stdout


def _output_of(argv: Sequence[str], around: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run it; it is gone when we are interrupted."""
    with ExitStack() as closing:
        with _undisturbed():
            # In a group of its own, because it would answer a terminal's Ctrl-C, too, and promise that its job goes on.
            process = subprocess.Popen(argv, env=around, stdout=subprocess.PIPE, text=True, process_group=0)
            closing.callback(process.wait)
            closing.callback(process.kill)
        out, _ = process.communicate()
    return subprocess.CompletedProcess(argv, process.returncode, out)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C counts at the end of this, because a process that is being started is not known to us yet."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in stop_signals()}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
    if came:
        raise KeyboardInterrupt


def _expect(true: object, otherwise: str) -> None:
    if not true:
        raise DemoFailed(otherwise)


if __name__ == "__main__":
    sys.exit(main())
