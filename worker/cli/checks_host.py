"""What `doctor` asks of this host: Redis, the backend, the receiver, and what building an image needs."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import httpx

from config.settings import Settings, runtimes
from worker.assembly import secret
from worker.backends.docker import DockerCompute
from worker.backends.docker_shape import Shape
from worker.broker import fault
from worker.cli.finding import Finding, faulty, ok, warning, wrong
from worker.errors import Misconfigured, Retryable, WorkerError
from worker.images.source import Mode, resolve
from worker.images.template import Templates
from worker.store.cache import Cache

_GIB: Final = 1 << 30
#: Below this a build, with its clone and its context, may not fit.
_LEAST_FREE_GIB: Final = 2
_CALL_S: Final = 2.0
_RUN: Final = "molecule-worker run"
_SLOWER: Final = "jobs start up to a second later"


def findings(own: Settings) -> Iterator[Finding]:
    """Everything that this machine can answer."""
    yield _cache(own)
    yield _broker(own)
    if own.backend == "memory":
        yield ok("docker", "not used: the backend is memory, and its workspaces are simulated")
        yield from _receiver(own, [own.receiver_addr])
        return
    with closing(DockerCompute(shape=Shape(installation="doctor"), network=own.network)) as compute:
        engine, gateway = _engine(compute), _gateway(compute)
    yield engine
    if not engine.unreachable:
        yield _network(own, gateway)
    port = own.receiver_addr.rpartition(":")[2]
    inside = [f"{gateway}:{port}"] if isinstance(gateway, str) else []
    yield from _receiver(own, [own.receiver_addr, *inside])
    yield from _images(own)


def _cache(own: Settings) -> Finding:
    if own.redis_url is None:
        return ok("redis", "none: the engine does not need it")
    try:
        with Cache(secret(own.redis_url)) as cache:
            answers = cache.answers()
    except WorkerError as error:
        return faulty("redis", error)
    if answers:
        return ok("redis", "it answers")
    return warning("redis", "it does not answer; nothing is lost, heartbeats rebuild it", "start it, or mend REDIS_URL")


def _broker(own: Settings) -> Finding:
    if own.broker_url is None:
        return ok("broker", f"none: {_SLOWER}")
    try:
        found = fault(own)
    except WorkerError as error:
        return faulty("broker", error)
    return ok("broker", "it answers") if found is None else warning("broker", f"{found.said}: {_SLOWER}", found.mend)


def _engine(compute: DockerCompute) -> Finding:
    try:
        return ok("docker", f"engine {compute.version()} at {compute.address}")
    except WorkerError as error:
        return faulty("docker", error)


def _gateway(compute: DockerCompute) -> str | WorkerError | None:
    try:
        return compute.found_gateway()
    except WorkerError as error:
        return error


def _network(own: Settings, gateway: str | WorkerError | None) -> Finding:
    if isinstance(gateway, WorkerError):
        return faulty("network", gateway)
    if gateway is None:
        return ok("network", f"{own.network} is not there yet; the worker makes it")
    return ok("network", f"{own.network}, the host is {gateway} on it")


def _receiver(own: Settings, addresses: list[str]) -> Iterator[Finding]:
    if own.platform_url is not None:
        yield ok("receiver", "not ours: workspaces register at PLATFORM_URL")
        return
    for address in addresses:
        yield _answer(address)


def _answer(address: str) -> Finding:
    try:
        answer = httpx.get(f"http://{address}/healthz", timeout=_CALL_S, trust_env=False)
    except httpx.ConnectError:
        return warning("receiver", f"nothing listens at {address}", _RUN)
    except httpx.HTTPError:
        return wrong("receiver", f"what listens at {address} does not speak HTTP", "set MOLECULE_WORKER_RECEIVER_ADDR")
    if answer.headers.get("content-type") != "application/json" or answer.json() != {"status": "ok"}:
        return wrong("receiver", f"another program answers at {address}", "end it, or set MOLECULE_WORKER_RECEIVER_ADDR")
    return ok("receiver", f"it answers at {address}")


def _images(own: Settings) -> Iterator[Finding]:
    if resolve(own.image_registry).mode is Mode.REGISTRY:
        said = "MOLECULE_IMAGE_REGISTRY is set, and pulling comes with a later release"
        yield wrong("images", said, "unset it to build workspace images on this host")
        return
    yield _git()
    yield _templates(own)
    yield _build_cache(own.build_cache)


def _git() -> Finding:
    program = shutil.which("git")
    if program is None:
        return wrong("git", "it is not on PATH, and images cannot be built without it", "install git")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return ok("git", said.strip().removeprefix("git version ") or program)


def _templates(own: Settings) -> Finding:
    """Whether the prefix and the token can be used at all, and whether the server answers; it is not shown the token."""
    try:
        with closing(Templates(own.template_repo_prefix, secret(own.gitea_token))) as templates:
            where = templates.repositories
    except WorkerError as error:
        return faulty("templates", error)
    said = f"{where.scheme}://{where.netloc}{where.base}/{where.org}/{where.name}…" + (", with a token" if own.gitea_token else "")
    silence = _silence(own.template_repo_prefix)
    if silence is None:
        return ok("templates", said)
    return warning("templates", f"{said}: {silence.message.partition(': ')[2]}; builds wait until it answers", silence.hint)


def _silence(prefix: str) -> Retryable | None:
    """What a question without a token meets. An answer that it may not be told is one, too."""
    try:
        with closing(Templates(prefix, None, limit_s=_CALL_S)) as templates:
            templates.head_sha(next(iter(runtimes().runtimes)))
    except Retryable as error:
        return error
    except Misconfigured:
        return None
    return None


def _build_cache(folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        return wrong("build cache", f"{there} may not be written to", "point MOLECULE_LOCAL_BUILD_CACHE at another folder")
    free = shutil.disk_usage(there).free / _GIB
    if free < _LEAST_FREE_GIB:
        return warning("build cache", f"{free:.1f} GiB free at {there}", "make room, or point MOLECULE_LOCAL_BUILD_CACHE elsewhere")
    return ok("build cache", f"{free:.0f} GiB free at {there}")
