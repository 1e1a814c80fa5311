"""What the daemon costs while nothing happens: memory, the time until it is ready, and the command line's first answer."""

import os
import subprocess
import sys
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Final

import httpx

from config import settings as environment
from tests.bench import procs
from tests.bench.ground import ROOT, Database, Ground, Teller, alive, running
from tests.bench.provision import NETWORK, engine_answers, network_of_ours
from tests.bench.table import Row, percentile, spread, times
from tests.waiting import until
from worker.cli import daemon as product

_COMMAND: Final = str(Path(sys.executable).with_name("molecule-worker"))
_STARTS: Final = 3
_HELPS: Final = 15
_SETTLE_S: Final = 4.0
_MEMORY_MB: Final = 250
_READY_MS: Final = 3000
_HELP_MS: Final = 400
#: The libraries that the daemon cannot do without, in a process that does nothing with them.
_BARE: Final = """
import os, sys, celery.apps.worker, cryptography.fernet, docker, httpx, kombu.transport.redis, psycopg2, pydantic, sqlalchemy
import starlette.applications, structlog, uvicorn, yaml
rollup = "/proc/self/smaps_rollup"
lines = open(rollup).readlines() if os.path.exists(rollup) else []
sys.stdout.write(next((line.split()[1] for line in lines if line.startswith("Rss:")), "0"))
"""


def measure(ground: Ground, tell: Teller) -> list[Row]:
    """Three rows; without a Docker engine on the memory backend, and then they say so."""
    backend = "docker" if engine_answers() else "memory"
    tell.begin(f"idle daemon on the {backend} backend: {_STARTS} starts")
    ready, memory = [], (0.0, 0.0, 0)
    with ground.database() as database, network_of_ours():
        around = ground.environment(database, MOLECULE_BACKEND=backend, MOLECULE_WORKER_NETWORK=NETWORK)
        product.bring_to_head(environment.load({name: around[name] for name in around if name in environment.known_names()}))
        for number in range(_STARTS):
            took, memory = _start(ground, database, around, settle_s=_SETTLE_S if number + 1 == _STARTS else 0.0)
            ready.append(took)
            tell.step(number + 1, _STARTS)
    tell.begin(f"molecule-worker --help: {_HELPS} times")
    said = "Docker backend" if backend == "docker" else "memory backend, no Docker engine answers"
    return [*_daemon_rows(ready, memory, said), _help_row()]


def _start(
    ground: Ground, database: Database, around: dict[str, str], *, settle_s: float
) -> tuple[float, tuple[float, float, int]]:
    """Milliseconds until it works and listens; then its memory, RSS and PSS in MiB, and how many processes it is."""
    health = f"http://{around['MOLECULE_WORKER_RECEIVER_ADDR']}/healthz"
    began = monotonic()
    with running([_COMMAND, "run"], around, ground.folder) as process, httpx.Client(trust_env=False, timeout=1.0) as client:
        until(lambda: alive(database) == 1 and _healthy(client, health), within=30.0, what="the daemon to be ready")
        took = (monotonic() - began) * 1000
        Event().wait(settle_s)
        pids = procs.family(process.pid) if procs.known() else []
        rss, pss = (sum(procs.memory_mb(pid, what) for pid in pids) for what in ("Rss", "Pss"))
    # Its lease ends with it; the next start must not find this one's row alive.
    until(lambda: alive(database) == 0, within=10.0, what="the daemon to be gone")
    return took, (rss, pss, len(pids))


def _healthy(client: httpx.Client, address: str) -> bool:
    try:
        return client.get(address).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _daemon_rows(ready: list[float], memory: tuple[float, float, int], said: str) -> list[Row]:
    began = monotonic()
    bare = subprocess.run([sys.executable, "-c", _BARE], capture_output=True, text=True, check=True).stdout
    import_ms = (monotonic() - began) * 1000
    return [
        _memory_row(memory, bare, said),
        Row(
            f"`run` until it claims and listens, {said}",
            f"{spread(ready)}, max {max(ready):.0f}",
            f"{import_ms:.0f} ms: importing the same libraries",
            times(percentile(ready, 50), import_ms),
            f"≤ {_READY_MS / 1000:.0f} s",
            met=max(ready) <= _READY_MS,
        ),
    ]


def _memory_row(memory: tuple[float, float, int], bare: str, said: str) -> Row:
    rss, pss, count = memory
    what, target = f"memory of the idle daemon, {said}", f"≤ {_MEMORY_MB} MB"
    if not count:
        return Row(what, "not measured: this system has no /proc/…/smaps_rollup", target=target)
    floor = int(bare) / 1024
    return Row(
        what,
        f"{rss:.0f} MB sum of RSS, {pss:.0f} MB sum of PSS, {count} processes",
        f"{floor:.0f} MB: one process that imports the same libraries",
        times(rss, floor),
        target,
        met=rss <= _MEMORY_MB,
    )


def _help_row() -> Row:
    helps, python = _clock([_COMMAND, "--help"]), _clock([sys.executable, "-c", "pass"])
    return Row(
        "`molecule-worker --help`, warm",
        spread(helps),
        f"{spread(python)}: python -c pass",
        times(percentile(helps, 50), percentile(python, 50)),
        f"≤ {_HELP_MS / 1000:g} s",
        met=percentile(helps, 95) <= _HELP_MS,
    )


def _clock(command: list[str]) -> list[float]:
    """Milliseconds of each run but the first."""
    took = []
    for _ in range(1 + _HELPS):
        began = monotonic()
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True)
        took.append((monotonic() - began) * 1000)
    return took[1:]
