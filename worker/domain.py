"""The nouns that every layer shares. Standard library only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NewType, NoReturn
from uuid import UUID

WorkspaceId = NewType("WorkspaceId", str)  #: lower-case UUID text with dashes
JobId = NewType("JobId", str)  #: lower-case UUID text with dashes

DEFAULT_TIER: Final = 2
TIERS: Final = (1, 2, 3, 4)
JOB_STATES: Final = ("queued", "running", "waiting", "blocked", "succeeded", "failed", "cancelled")


class Secret:
    """A value that only `reveal()` gives away.

    It has no useful repr, str, format, pickle, JSON or hash, because a secret leaks through
    the call site that nobody thought of; the type is the redaction.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself. Search for this name to see every place that reads a secret."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    __hash__ = None  # type: ignore[assignment]  # because a hash of a short secret can be guessed

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("pickle secret: a Secret never leaves its process")


class WorkspaceStatus(StrEnum):
    """The values of `workspaces.status` that exist in the platform's enum."""

    #: a row exists; a container may be on its way and has not registered
    PROVISIONING = "provisioning"
    #: the agent registered or sent a heartbeat by itself
    ONLINE = "online"
    #: the agent was online and is not answering
    OFFLINE = "offline"
    #: the agent answers and reports trouble
    DEGRADED = "degraded"
    #: provisioning was given up and undone
    FAILED = "failed"
    #: the tombstone: terminal, nothing brings it back
    REMOVED = "removed"
    #: stopped by a person; volumes kept
    PAUSED = "paused"
    #: stopped for lack of use; volumes kept
    HIBERNATED = "hibernated"


def tier_of_row(tier: int | None) -> int:
    """The tier a stored row means: rows older than the check may hold 0 or NULL, which mean 2."""
    return tier if tier in TIERS else DEFAULT_TIER


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.IGNORECASE)


def parse_id(text: str) -> str:
    """A UUID in its one canonical spelling. Raises ValueError for anything else."""
    if not _UUID.match(text):
        raise ValueError("not a UUID")
    return str(UUID(text))


def short_id(workspace_id: str) -> str:
    """The first 12 characters of the id (8 hex, a dash, 3 hex): what the platform's names carry."""
    return workspace_id[:12]


def container_name(workspace_id: str) -> str:
    """The platform's name of a workspace's container, also its network alias."""
    return f"ws-{short_id(workspace_id)}"


@dataclass(frozen=True, slots=True)
class Workspace:
    """A row of `public.workspaces` as provisioning and deletion read it."""

    id: WorkspaceId
    name: str
    role: str | None
    tier: int  #: 1..4, already normalised by `tier_of_row`
    status: WorkspaceStatus
    runtime: str
    parent_id: WorkspaceId | None
    workspace_dir: str | None
    workspace_access: str  #: none | read_only | read_write
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a workspace lives: which organisation pays, which backend, which of its hosts."""

    org: str  #: organisation slug; "" for an installation without organisations
    backend: str  #: docker | memory | ec2
    host: str  #: name of the Docker daemon, `local` for the only one


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is present on the workspace's host, and what its template says of itself."""

    reference: str  #: what the backend runs: tag or digest
    template_config: str | None = None  #: the template's own config.yaml, None when it has none
    origin: Mapping[str, str] = field(default_factory=dict)  #: sha, builder, cache: facts, no secret


@dataclass(frozen=True, slots=True)
class WorkspaceSpec:
    """Everything a backend needs to bring one workspace to life. Lives in memory only."""

    workspace_id: WorkspaceId
    job_id: JobId  #: the passage that creates; stamped on what it makes, so that undo knows its own
    org: str
    runtime: str
    tier: int
    image: str
    environment: Mapping[str, Secret]
    files: Mapping[str, Secret]  #: path below /configs → text; always written before the start
    defaults: Mapping[str, str]  #: path below /configs → text; written only where nothing lies yet
    workspace_dir: str | None = None
    workspace_access: str = "none"


class Presence(StrEnum):
    """What a backend can truthfully say of a thing. `unknown` is never `gone`."""

    RUNNING = "running"
    #: it exists and is not running: created, exited, restarting in a loop
    STOPPED = "stopped"
    GONE = "gone"
    #: the backend did not answer, or not in a way that settles it
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at a workspace's compute."""

    presence: Presence
    handle: str | None = None  #: the backend's own id, when it has one
    url: str | None = None  #: where the host reaches port 8000 right now
    restarts: int = 0
    exit_code: int | None = None
    reason: str | None = None  #: e.g. `oom`: a word, never output of the workspace


@dataclass(frozen=True, slots=True)
class Handle:
    """What `ensure` answers: the backend's id and the address as the host sees it."""

    id: str
    url: str | None


class ThingKind(StrEnum):
    """What a backend can leave behind."""

    CONTAINER = "container"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class Thing:
    """One outside resource of this installation, as a listing found it or the ledger holds it."""

    kind: ThingKind
    name: str
    workspace_id: str | None
    job_id: str | None = None
