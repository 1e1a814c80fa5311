"""Puts the world of a worker process together from its settings: which backend, which images, whose key."""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import timedelta
from threading import Event, Thread

import docker
import structlog
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from config.settings import Settings, runtimes
from worker.backends.docker import DockerCompute
from worker.backends.docker_shape import Shape, restart_policy_of
from worker.backends.memory import MemoryCompute
from worker.backends.tiers import sizes_of
from worker.crypto import keyring
from worker.domain import Secret
from worker.errors import Misconfigured, WorkerError
from worker.forbidden import refuse_forbidden
from worker.images.local import Limits, LocalImages
from worker.images.registry import RegistryImages
from worker.images.simulated import SimulatedImages
from worker.images.source import Mode, resolve
from worker.ports import Images
from worker.queues import serves_host
from worker.store import processes, secrets
from worker.store.cache import Cache
from worker.store.sweeps import Ground
from worker.world import World

log = structlog.get_logger()

#: Seconds between two questions whether the backend answers.
_PULSE_S = 5.0


def assemble(settings: Settings, engine: Engine, process_id: int, closing: ExitStack) -> World:
    """The world of one process. Raises Misconfigured, in production also when there is no usable key."""
    with engine.connect() as connection:
        refuse_new_key(settings, connection)
    key = static_key(settings)
    compute = compute_of(settings, engine)
    closing.callback(compute.close)
    cache = Cache(secret(settings.redis_url))
    closing.callback(cache.close)
    images = _images(settings, engine, process_id, closing)
    serves = serves_host(settings)
    pulse = Pulse(compute, lambda queue, there: _serve(engine, process_id, queue, there=there and serves))
    closing.callback(pulse.close)
    return World(
        engine=engine,
        key=key,
        compute=compute,
        images=images,
        cache=cache,
        runtimes=runtimes(),
        platform_url=lambda: settings.platform_url or f"http://{receiver_address(settings, compute)}",
        passthrough=_passthrough(settings, os.environ),
        saas=settings.saas,
        answers=lambda: pulse.beating,
    )


def compute_of(settings: Settings, engine: Engine) -> DockerCompute | MemoryCompute:
    """The backend that MOLECULE_BACKEND names, for this installation."""
    installation = installation_of(engine)
    sessions = runtimes().runtimes

    def keeps_sessions(runtime: str) -> bool:
        return runtime in sessions and sessions[runtime].session_volume

    if settings.backend == "memory":
        return MemoryCompute(
            path=settings.state_dir / "simulated.json",
            installation=installation,
            host=settings.docker_host,
            keeps_sessions=keeps_sessions,
            platform_url=settings.platform_url or f"http://{settings.receiver_addr}",
        )
    tiers = {
        f"TIER{n}_{what}": getattr(settings, f"tier{n}_{what.lower()}") for n in (2, 3, 4) for what in ("MEMORY_MB", "CPU_SHARES")
    }
    return DockerCompute(
        shape=Shape(installation, restart_policy_of(settings.restart_policy), sizes_of(tiers)),
        network=settings.network,
        host=settings.docker_host,
        platform=settings.image_platform,
        keeps_sessions=keeps_sessions,
    )


def receiver_address(settings: Settings, compute: DockerCompute | MemoryCompute) -> str:
    """Where workspaces of this host reach the receiver: the network's gateway, because a container has its own loopback."""
    if isinstance(compute, MemoryCompute):
        return settings.receiver_addr
    return f"{compute.gateway()}:{settings.receiver_addr.rpartition(':')[2]}"


def static_key(settings: Settings) -> keyring.StaticKey:
    """This installation's key. Raises Misconfigured."""
    return keyring.load(secret(settings.secrets_encryption_key), settings.production, settings.state_dir)


def has_key(settings: Settings) -> bool:
    """Whether asking for the key would make none: it is set, or was made before, or must be set."""
    given = settings.secrets_encryption_key
    made = settings.state_dir / keyring.KEY_FILE
    return bool(given and given.get_secret_value()) or settings.production or os.path.lexists(made)


def refuse_new_key(settings: Settings, connection: Connection) -> None:
    """Before a key is made: what is stored must not be sealed under another one. Raises Misconfigured.

    Because whatever a second key seals, the first one's owner could not open, and every provision would meet both.
    """
    if has_key(settings):
        return
    _, closed = secrets.sealed_otherwise(connection, None)
    if closed:
        plural = "s are" if closed > 1 else " is"
        raise Misconfigured(
            f"make key: {closed} stored secret{plural} sealed under another one, which is not in {settings.state_dir}",
            hint="set SECRETS_ENCRYPTION_KEY to that key, or MOLECULE_WORKER_STATE_DIR to the folder that holds it",
        )


def secret(value: object) -> Secret | None:
    """A setting's hidden text in our own type."""
    reveal: Callable[[], str] | None = getattr(value, "get_secret_value", None)
    return Secret(reveal()) if reveal is not None else None


def ground(settings: Settings, engine: Engine, *, pretend: bool = False) -> Ground:
    """What the sweeps of this installation can reach."""
    return Ground(engine, timedelta(days=settings.keep_days), timedelta(days=settings.keep_failed_days), pretend)


def installation_of(engine: Engine) -> str:
    """Who we are: every outside resource carries it."""
    with engine.connect() as connection:
        return str(connection.execute(text("SELECT id FROM worker.installation")).scalar_one())


class Pulse:
    """Asks in a thread of its own whether the backend answers, because a hanging engine must not stop the intake."""

    def __init__(
        self, compute: DockerCompute | MemoryCompute, tell: Callable[[str, bool], None], *, every_s: float = _PULSE_S
    ) -> None:
        self._compute = compute
        self._every_s = every_s
        self._tell = tell
        self._ended = Event()
        self.beating = self._look(told=None)
        self._thread = Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop asking."""
        self._ended.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            self.beating = self._look(told=self.beating)

    def _look(self, *, told: bool | None) -> bool:
        try:
            self._compute.version()
            beating, reason = True, ""
        except WorkerError as error:
            beating, reason = False, error.message
        if beating != told:
            queue = f"{self._compute.name}.{self._compute.host}"
            log.info("backend answers", queue=queue) if beating else log.warning(
                "backend away", queue=queue, reason=reason, effect="its jobs wait for it"
            )
            self._tell(queue, beating)
        return beating


def _serve(engine: Engine, process_id: int, queue: str, *, there: bool) -> None:
    try:
        with engine.begin() as connection:
            processes.serve(connection, process_id, queue, there=there)
    except SQLAlchemyError as error:
        log.warning("queue not recorded", queue=queue, reason=type(error).__name__)


def _images(settings: Settings, engine: Engine, process_id: int, closing: ExitStack) -> Images:
    known = runtimes().runtimes
    if settings.backend == "memory":
        return SimulatedImages(known)
    source = resolve(settings.image_registry)
    if source.mode is Mode.REGISTRY:
        return RegistryImages(source, known)
    local = LocalImages(
        engine,
        _docker_client,
        runtimes=known,
        prefix=settings.template_repo_prefix,
        token=secret(settings.gitea_token),
        cache=settings.build_cache,
        platform=settings.image_platform,
        limits=Limits(settings.build_ceiling_s, settings.build_stall_grace_s),
        installation=installation_of(engine),
        host=settings.docker_host,
        process_id=lambda: process_id,
    )
    closing.callback(local.close)
    return local


def _docker_client() -> docker.APIClient:
    return docker.APIClient(**docker.utils.kwargs_from_env(), version="auto")


def _passthrough(settings: Settings, environment: Mapping[str, str]) -> dict[str, Secret]:
    """Host variables on the operator's own list. Raises Misconfigured for one that no workspace may ever see."""
    names = [name.strip() for name in settings.env_passthrough.split(",") if name.strip()]
    refuse_forbidden(names)
    return {name: Secret(environment[name]) for name in names if environment.get(name)}
