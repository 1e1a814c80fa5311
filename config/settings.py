"""Every environment variable that the worker reads: name, type, unit, default, sentence.

Read once, in the composition root, after the process has forked. Nothing else reads the environment.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

PREFIX = "MOLECULE_WORKER_"
_FILE = "_FILE"
#: Bytes; no secret of ours is a tenth of it.
_FILE_LIMIT = 64 * 1024


class BadSetting(ValueError):
    """The environment cannot be what its author meant."""


class UnknownSetting(BadSetting):
    """A `MOLECULE_WORKER_*` name that no release knows: a typing error must not pass as a default."""


class BadSecretFile(BadSetting):
    """A secret that is said twice, or whose file cannot be read."""


def _default_state_dir() -> Path:
    """As root below /var/lib, because embedded Postgres widens the modes of every parent folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/molecule-worker")
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "molecule-worker"


def _default_build_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "molecule" / "workspace-template-build"


Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Days = Annotated[float, Field(gt=0, le=36_500, allow_inf_nan=False)]
Address = Annotated[str, Field(pattern=r"^[^:\s]+:\d{1,5}$")]


class Settings(BaseModel):
    """The environment, frozen. Fields keep the platform's own names; ours start with MOLECULE_WORKER_."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)

    # ---- the platform's own names
    database_url: SecretStr | None = Field(None, alias="DATABASE_URL", description="Postgres, the truth.")
    redis_url: SecretStr | None = Field(None, alias="REDIS_URL", description="The platform's cache, database 0.")
    celery_broker_url: SecretStr | None = Field(
        None,
        alias="CELERY_BROKER_URL",
        description="Doorbells: Redis, or a virtual host of RabbitMQ. Default: database 1 of REDIS_URL.",
    )
    platform_url: str | None = Field(
        None, alias="PLATFORM_URL", description="Where workspaces register. Default: the worker's own receiver."
    )
    molecule_env: str = Field("development", alias="MOLECULE_ENV", description="`production` refuses to start without a key.")
    molecule_org_id: str | None = Field(
        None,
        alias="MOLECULE_ORG_ID",
        description="Set on a multi-tenant installation, where tiers 3 and 4 are refused: they are root on the host.",
    )
    secrets_encryption_key: SecretStr | None = Field(
        None,
        alias="SECRETS_ENCRYPTION_KEY",
        description="This installation's static key: base64 of 32 bytes, 32 raw characters, or 64 hex digits.",
    )
    image_registry: str | None = Field(
        None, alias="MOLECULE_IMAGE_REGISTRY", description="Set: images are pulled from this prefix. Unset: built locally."
    )
    image_platform: str = Field(
        "linux/amd64", alias="MOLECULE_IMAGE_PLATFORM", description="Platform of workspace images; set-empty disables the flag."
    )
    template_repo_prefix: str = Field(
        "https://git.moleculesai.app/molecule-ai/molecule-ai-workspace-template-",
        alias="MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX",
        description="Where template repositories live; the runtime's name is appended.",
    )
    gitea_token: SecretStr | None = Field(None, alias="MOLECULE_GITEA_TOKEN", description="Reads private template repositories.")
    build_cache: Path = Field(
        default_factory=_default_build_cache, alias="MOLECULE_LOCAL_BUILD_CACHE", description="Clones of templates."
    )
    build_ceiling_s: Seconds = Field(720, alias="MOLECULE_BUILD_CEILING_S", description="A build may take this long, in seconds.")
    build_stall_grace_s: Seconds = Field(
        240, alias="MOLECULE_BUILD_STALL_GRACE_S", description="A build may be silent this long, in seconds."
    )
    restart_policy: str = Field(
        "unless-stopped",
        alias="MOLECULE_WORKSPACE_RESTART_POLICY",
        description="no, always, on-failure or unless-stopped; anything else means the default.",
    )
    # Kept as text, because a value that is not a positive number means the default and not a refusal.
    tier2_memory_mb: str = Field("", alias="TIER2_MEMORY_MB", description="Memory of tier 2, MiB. Default 512.")
    tier2_cpu_shares: str = Field("", alias="TIER2_CPU_SHARES", description="CPU of tier 2, 1024 = one core. Default 1024.")
    tier3_memory_mb: str = Field("", alias="TIER3_MEMORY_MB", description="Memory of tier 3, MiB. Default 2048.")
    tier3_cpu_shares: str = Field("", alias="TIER3_CPU_SHARES", description="CPU of tier 3, 1024 = one core. Default 2048.")
    tier4_memory_mb: str = Field("", alias="TIER4_MEMORY_MB", description="Memory of tier 4, MiB. Default 4096.")
    tier4_cpu_shares: str = Field("", alias="TIER4_CPU_SHARES", description="CPU of tier 4, 1024 = one core. Default 4096.")
    otlp_endpoint: SecretStr | None = Field(
        None,
        alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="Set: spans of steps are sent there, OTLP over HTTP. The other OTEL_* variables hold as well.",
    )
    traceparent: str | None = Field(
        None, alias="TRACEPARENT", description="W3C trace that a command belongs to: it is stored with the jobs that it starts."
    )
    backend: Literal["docker", "memory"] = Field("docker", alias="MOLECULE_BACKEND", description="Where workspaces run.")

    # ---- the worker's own
    state_dir: Path = Field(
        default_factory=_default_state_dir,
        alias="MOLECULE_WORKER_STATE_DIR",
        description="The embedded stack, and the generated key outside production.",
    )
    receiver_addr: Address = Field("127.0.0.1:8700", alias="MOLECULE_WORKER_RECEIVER_ADDR", description="Faces workspaces.")
    admin_addr: Address = Field(
        "127.0.0.1:8701", alias="MOLECULE_WORKER_ADMIN_ADDR", description="Faces operators: /healthz, /readyz, /metrics."
    )
    lease_s: Seconds = Field(
        3.0, alias="MOLECULE_WORKER_LEASE_S", description="A silent process loses its work after this, seconds."
    )
    poll_s: Seconds = Field(1.0, alias="MOLECULE_WORKER_POLL_S", description="How often a worker looks by itself, seconds.")
    processes: Annotated[int, Field(ge=1, le=64)] = Field(
        1, alias="MOLECULE_WORKER_PROCESSES", description="Celery worker processes that `run` supervises."
    )
    slots: Annotated[int, Field(ge=1, le=256)] = Field(
        32, alias="MOLECULE_WORKER_SLOTS", description="Jobs that one worker process drives at once."
    )
    queues: str = Field(
        "",
        alias="MOLECULE_WORKER_QUEUES",
        description="Comma-separated queues to serve. Default: this host's, and one of each kind that has its own.",
    )
    keep_days: Days = Field(
        30, alias="MOLECULE_WORKER_KEEP_DAYS", description="Jobs that succeeded or were cancelled are kept this long, days."
    )
    keep_failed_days: Days = Field(
        180, alias="MOLECULE_WORKER_KEEP_FAILED_DAYS", description="Failed jobs are kept this long, days."
    )
    log_format: Literal["json", "console"] = Field(
        "json", alias="MOLECULE_WORKER_LOG_FORMAT", description="For machines or people."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", alias="MOLECULE_WORKER_LOG_LEVEL", description="Least severe level that is written."
    )
    env_passthrough: str = Field(
        "",
        alias="MOLECULE_WORKER_ENV_PASSTHROUGH",
        description="Comma-separated names of host variables that every workspace receives.",
    )
    docker_host: str = Field(
        "local", alias="MOLECULE_WORKER_DOCKER_HOST_NAME", description="Name of this Docker daemon in placements."
    )
    network: str = Field("molecule-monorepo-net", alias="MOLECULE_WORKER_NETWORK", description="Docker network of workspaces.")

    @field_validator(
        "database_url",
        "redis_url",
        "celery_broker_url",
        "platform_url",
        "molecule_org_id",
        "image_registry",
        "otlp_endpoint",
        "traceparent",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: str | None) -> str | None:
        """An empty variable is an unset one, because compose files write `FOO=` for "nothing"."""
        return value or None

    @property
    def production(self) -> bool:
        """Trimmed and lower-cased `prod` or `production`, as the platform reads MOLECULE_ENV."""
        return self.molecule_env.strip().lower() in {"prod", "production"}

    @property
    def saas(self) -> bool:
        """Whether this is a multi-tenant installation, as the platform reads it: an empty id is none."""
        return self.molecule_org_id is not None

    @property
    def broker_url(self) -> SecretStr | None:
        """CELERY_BROKER_URL, else database 1 of REDIS_URL, because liveness listens on database 0."""
        if self.celery_broker_url or not self.redis_url:
            return self.celery_broker_url
        base = re.sub(r"/\d*(?=\?|$)", "", self.redis_url.get_secret_value(), count=1)
        head, mark, query = base.partition("?")
        return SecretStr(f"{head.rstrip('/')}/1{mark}{query}")


def known_names() -> Mapping[str, str]:
    """Variable name → sentence, for `--help`, the README's table and the refusal below."""
    names = {str(field.alias): str(field.description) for field in Settings.model_fields.values()}
    return names | {f"{name}{_FILE}": f"A file that holds {name}, instead of it." for name in secret_names()}


def secret_names() -> list[str]:
    """Settings that a file may hold: whatever is in the environment is seen by everybody who may inspect the container."""
    return [str(field.alias) for field in Settings.model_fields.values() if SecretStr in get_args(field.annotation)]


def refuse_unknown(environment: Mapping[str, str]) -> None:
    """Raise UnknownSetting for a `MOLECULE_WORKER_*` name that is not in the list, naming one that is near."""
    strange = sorted(name for name in environment if name.startswith(PREFIX) and name not in known_names())
    if not strange:
        return
    import difflib  # noqa: PLC0415  because a typing error is rare and every command passes here

    known = [name.removeprefix(PREFIX) for name in known_names() if name.startswith(PREFIX)]
    near = difflib.get_close_matches(strange[0].removeprefix(PREFIX), known, n=1)
    meant = f"did you mean {PREFIX}{near[0]}?" if near else "the README lists those that are"
    raise UnknownSetting(f"read settings: {strange[0]} is not known; {meant}")


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of this process. Raises BadSetting or pydantic's ValidationError; neither shows a value."""
    source = dict(os.environ if environment is None else environment)
    refuse_unknown(source)
    return Settings.model_validate(source | _from_files(source))


def _from_files(environment: Mapping[str, str]) -> dict[str, str]:
    """Secrets whose `*_FILE` names a file. An empty variable is an unset one, an empty file is an empty variable."""
    found = {}
    for name in secret_names():
        path = environment.get(name + _FILE)
        if not path:
            continue
        if environment.get(name):
            raise BadSecretFile(f"read settings: {name} and {name}{_FILE} are both set, and one of them would be ignored")
        found[name] = _secret_in(name, Path(path))
    return found


def _secret_in(name: str, path: Path) -> str:
    """Without the line's end that editors and `echo` put there; other blanks may belong to a key."""
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_LIMIT + 1)
        text = content.decode()
    except OSError as error:
        raise BadSecretFile(f"read settings: the file of {name}{_FILE}: {(error.strerror or 'unreadable').lower()}") from None
    except UnicodeDecodeError:
        raise BadSecretFile(f"read settings: the file of {name}{_FILE} is not text") from None
    if len(content) > _FILE_LIMIT:
        raise BadSecretFile(f"read settings: the file of {name}{_FILE} is too long for a secret")
    return text.removesuffix("\n").removesuffix("\r")


class Runtime(BaseModel):
    """What `runtimes.toml` says of one runtime."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = None
    session_volume: bool = False
    keeps_timeout: bool = False
    deadline_s: float | None = None


class Runtimes(BaseModel):
    """The allow-list of runtimes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default_model: str
    default_deadline_s: float
    runtimes: dict[str, Runtime]

    def model_of(self, runtime: str) -> str:
        """The model that a generated config names."""
        return self.runtimes[runtime].model or self.default_model

    def deadline_of(self, runtime: str) -> float:
        """Seconds from start to the agent's own registration."""
        return self.runtimes[runtime].deadline_s or self.default_deadline_s


@cache
def runtimes() -> Runtimes:
    """The allow-list that ships with this release."""
    return Runtimes.model_validate(tomllib.loads((Path(__file__).parent / "runtimes.toml").read_text()))
