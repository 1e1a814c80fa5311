"""What lies at /workspace, decided apart from the engine because a wrong bind gives a tenant the host."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from worker.backends.names import workspace_volume
from worker.domain import WorkspaceSpec
from worker.errors import Refused

_FORBIDDEN: Final = ("/etc", "/var", "/proc", "/sys", "/dev", "/boot", "/sbin", "/bin", "/lib", "/usr")
#: Beyond the platform's own list: an entry point that chowns its workspace would take root's home, /var/run is a link to /run,
#: where the engine's socket is, and the rest belongs to the system too.
_FORBIDDEN_TOO: Final = ("/root", "/run", "/lib32", "/lib64", "/libx32")
_ACCESS: Final = ("", "none", "read_only", "read_write")


@dataclass(frozen=True, slots=True)
class Volume:
    """The workspace's own named volume."""

    name: str


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory of the host."""

    path: str
    read_only: bool


def refuse_directory(path: str) -> None:
    """Raise Refused for a directory of the host that no workspace may see."""
    parts = PurePosixPath(path)
    forbidden = [*_FORBIDDEN, *_FORBIDDEN_TOO]
    if not path.startswith("/") or "\0" in path:
        reason = "it is not an absolute path"
    elif ".." in parts.parts:
        reason = "it contains `..`"
    elif not parts.name:
        reason = "it is the whole host"
    elif any(parts.is_relative_to(PurePosixPath(top)) for top in forbidden) or path.startswith("//"):
        reason = "it belongs to the host's system"
    else:
        return
    raise Refused(
        f"mount workspace directory: {reason}", hint="name a directory of your own by its absolute path", code="workspace_dir"
    )


def workspace_mount(spec: WorkspaceSpec) -> Volume | Bind | None:
    """What /workspace is. None: nothing is mounted there (tier 1). Raises Refused for a directory or access that is not allowed."""
    if spec.workspace_access not in _ACCESS:
        raise Refused(
            "mount workspace directory: its access is not known", hint="say none, read_only or read_write", code="workspace_access"
        )
    if spec.tier == 1:
        return None
    if not spec.workspace_dir or spec.workspace_access == "none":
        return Volume(workspace_volume(spec.workspace_id))
    refuse_directory(spec.workspace_dir)
    return Bind(spec.workspace_dir, read_only=spec.workspace_access == "read_only")
