"""What the worker itself adds to the provision of a workspace whose image is there already."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from typing import Final

import docker

from config import settings as environment
from tests.bench import spans
from tests.bench.ground import ROOT, Database, Ground, Teller, ask, daemon, ends
from tests.bench.spans import Span
from tests.bench.table import Row, percentile, spread, times
from worker import demo
from worker.domain import Placement
from worker.forge import Forge, make_template
from worker.new_workspace import NewWorkspace
from worker.store import requests, workspaces

_WHAT: Final = "cached provision on Docker, less Docker, Gitea and the runtime's boot"
_TARGET: Final = "p50 ≤ 50 ms"
_TARGET_MS: Final = 50
_TIMES: Final = 10
NETWORK: Final = "molecule-bench-net"


@dataclass(frozen=True, slots=True)
class Provision:
    """One provision, in milliseconds."""

    wall: float
    others: float  #: in which Docker, Gitea or the starting runtime was at work


def measure(ground: Ground, tell: Teller) -> list[Row]:
    """One workspace after the other through the real daemon, each deleted again; the first one builds the image."""
    busybox, why = demo._docker_ready()
    if busybox is None:
        return [Row(_WHAT, f"not measured: {why}", target=_TARGET)]
    tell.begin(f"cached provision: {_TIMES} workspaces, one after the other")
    with ground.database() as database, _forge(ground, busybox) as forge, network_of_ours():
        done = _provisions(ground, database, forge, tell)
    own = [one.wall - one.others for one in done]
    others = [one.others for one in done]
    return [
        Row(
            _WHAT,
            f"{spread(own)}; all in all p50 {percentile([one.wall for one in done], 50):.0f} ms",
            f"{spread(others)}: Docker, Gitea and boot",
            times(percentile([one.wall for one in done], 50), percentile(others, 50)),
            _TARGET,
            met=percentile(own, 50) <= _TARGET_MS,
        )
    ]


@contextmanager
def _forge(ground: Ground, busybox: Path) -> Iterator[Forge]:
    forge = Forge(ground.folder / "git")
    try:
        forge.publish(demo.RUNTIME, make_template(ROOT / "docker" / "demo-runtime", busybox, ground.folder / "template"))
        yield forge
    finally:
        forge.close()


def engine_answers() -> bool:
    """Whether there is a Docker engine."""
    try:
        docker.APIClient(**docker.utils.kwargs_from_env(), version="auto", timeout=5).close()
    except docker.errors.DockerException:
        return False
    return True


@contextmanager
def network_of_ours() -> Iterator[None]:
    """The daemon makes it where an engine answers; at the end it is gone."""
    yield
    if not engine_answers():
        return
    client = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto")
    for network in client.networks(names=[NETWORK]):
        client.remove_network(network["Id"])
    client.close()


def _provisions(ground: Ground, database: Database, forge: Forge, tell: Teller) -> list[Provision]:
    folder = ground.folder / "spans"
    folder.mkdir()
    around = {
        "MOLECULE_BACKEND": "docker",
        "MOLECULE_WORKER_NETWORK": NETWORK,
        "MOLECULE_LOCAL_BUILD_CACHE": str(ground.folder / "builds"),
        "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX": forge.prefix,
        spans.FOLDER: str(folder),
    }
    done = []
    with daemon(ground, database, more=around), ends(database) as end_of:
        for number in range(1 + _TIMES):
            done.append(_provision(database, folder, end_of))
            tell.step(number + 1, 1 + _TIMES)
    return done[1:]


def _provision(database: Database, folder: Path, end_of: Callable[[str], str]) -> Provision:
    with database.engine.connect() as connection:
        wanted = NewWorkspace("bench", demo.RUNTIME, tier=2)
        workspace = workspaces.create(connection, wanted, Placement("", "docker", "local"), environment.runtimes().runtimes)
        job, _ = requests.enqueue(connection, "workspace.provision", {"workspace_id": workspace})
        connection.commit()
        begin = monotonic_ns()
    if (state := end_of(job)) != "succeeded":
        error = ask(database, "SELECT error ->> 'message' FROM worker.jobs WHERE id = :job", job=job)
        raise AssertionError(f"the provision {state}: {error}")
    took = "SELECT extract(epoch FROM finished_at - created_at) * 1e9 FROM worker.jobs WHERE id = :job"
    end = begin + int(ask(database, took, job=job))
    found = [span for span in spans.read(folder) if span.end > begin and span.begin < end]
    others = spans.covered([*(span for span in found if span.what != "knock"), _boot(found)], begin, end)
    with database.engine.begin() as connection:
        gone, _ = requests.enqueue(connection, "workspace.delete", {"workspace_id": workspace})
    end_of(gone)
    return Provision((end - begin) / 1e6, others / 1e6)


def _boot(found: Sequence[Span]) -> Span:
    """From the engine's answer that the container runs to the agent's own knock at the receiver."""
    started = next(span for span in found if span.path.endswith("/start"))
    knocked = next(span for span in found if span.what == "knock" and span.path.endswith("/register"))
    return Span("boot", "", started.end, knocked.begin)
