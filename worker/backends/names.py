"""Names and labels of what a workspace leaves on a host, in one place because the backends must agree on whose a thing is."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from worker.domain import Thing, ThingKind, WorkspaceSpec, container_name, short_id
from worker.errors import Foreign

MANAGED: Final = "molecule.platform.managed"
INSTALLATION: Final = "molecule.platform.installation"
WORKSPACE: Final = "molecule.platform.workspace"
JOB: Final = "molecule.platform.job"
ORG: Final = "molecule.platform.org"


class Owner(Enum):
    """Whose a thing is that bears a name of ours."""

    OURS = auto()
    #: ours by name and by nothing else, because the name carries the full id and the thing bears no label
    NAMELESS = auto()
    #: of this installation, for another workspace whose id begins with the same 12 characters
    SIBLING = auto()
    FOREIGN = auto()


def config_volume(workspace_id: str) -> str:
    """Mounted at /configs."""
    return f"ws-{short_id(workspace_id)}-configs"


def workspace_volume(workspace_id: str) -> str:
    """Mounted at /workspace. The platform puts the full id in this name only."""
    return f"ws-{workspace_id}-workspace"


def session_volume(workspace_id: str) -> str:
    """Mounted where the runtime keeps its sessions."""
    return f"ws-{short_id(workspace_id)}-claude-sessions"


def volume_names(workspace_id: str) -> tuple[str, str, str]:
    """Every volume that a workspace can have, whatever its runtime and tier are or once were."""
    return config_volume(workspace_id), workspace_volume(workspace_id), session_volume(workspace_id)


def planned_volumes(workspace_id: str, *, tier: int, sessions: bool) -> tuple[str, ...]:
    """The volumes that a new workspace gets. Tier 1 has its configuration and nothing else."""
    configs, workspace, claude_sessions = volume_names(workspace_id)
    if tier == 1:
        return (configs,)
    return (configs, workspace, claude_sessions) if sessions else (configs, workspace)


def planned_things(workspace_id: str, *, tier: int, sessions: bool) -> list[Thing]:
    """What provisioning makes, for the ledger. A bound directory makes its volume a name that never comes to exist."""
    volumes = planned_volumes(workspace_id, tier=tier, sessions=sessions)
    return [
        *(Thing(ThingKind.VOLUME, name, workspace_id) for name in volumes),
        Thing(ThingKind.CONTAINER, container_name(workspace_id), workspace_id),
    ]


def labels_of(spec: WorkspaceSpec, installation: str) -> dict[str, str]:
    """The labels of everything that this passage creates."""
    return {
        MANAGED: "true",
        INSTALLATION: installation,
        WORKSPACE: spec.workspace_id,
        JOB: spec.job_id,
        ORG: spec.org,
    }


def owner_of(name: str, labels: Mapping[str, str] | None, *, installation: str, workspace_id: str) -> Owner:
    """Whose the thing is that bears `name`, by its labels.

    A volume without any label and with the full id in its name was made by the container engine itself: it recreates a
    named volume that is missing when a container starts, and knows no labels then. It can be nobody else's. Names with
    12 characters prove nothing.
    """
    found = labels or {}
    if found.get(INSTALLATION) == installation:
        return Owner.OURS if found.get(WORKSPACE) == workspace_id else Owner.SIBLING
    if not found and name == workspace_volume(workspace_id):
        return Owner.NAMELESS
    return Owner.FOREIGN


def thing_of(kind: ThingKind, name: str, labels: Mapping[str, str] | None) -> Thing:
    """A listed thing, with what its labels say."""
    found = labels or {}
    return Thing(kind, name, found.get(WORKSPACE), found.get(JOB))


def foreign(action: str, name: str) -> Foreign:
    """The refusal to touch something that bears a name we need."""
    return Foreign(
        f"{action}: the name {name} belongs to something that this workspace did not make",
        hint=f"rename or remove {name} on the host, then retry the job",
    )
