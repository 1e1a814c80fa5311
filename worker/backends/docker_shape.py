"""What a workspace looks like to a Docker engine: the pure part, so that tiers and mounts are tested without one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from worker.backends.mounts import Bind, workspace_mount
from worker.backends.names import config_volume, labels_of, session_volume
from worker.backends.tiers import DEFAULT_SIZES, Size, refuse_tier
from worker.domain import Secret, WorkspaceSpec, container_name
from worker.errors import Refused

PORT: Final = "8000/tcp"
CONFIGS: Final = "/configs"
SESSIONS: Final = "/root/.claude/sessions"

RESTART_POLICIES: Final = ("no", "always", "on-failure", "unless-stopped")
DEFAULT_RESTART_POLICY: Final = "unless-stopped"

#: What the platform's entry point needs of root: it owns /configs, becomes uid 1000, and its init passes TERM on.
CAPABILITIES: Final = ("CHOWN", "SETUID", "SETGID", "DAC_OVERRIDE", "FOWNER", "KILL")
_PIDS: Final = 512
_STOP_S: Final = 10
_LOGS: Final = {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}


@dataclass(frozen=True, slots=True)
class Shape:
    """What is the same for every workspace of this installation on this host."""

    installation: str
    restart_policy: str = DEFAULT_RESTART_POLICY
    sizes: Mapping[int, Size] = field(default_factory=lambda: DEFAULT_SIZES)


def restart_policy_of(text: str) -> str:
    """The restart policy that a setting means; anything unknown means the default."""
    return text if text in RESTART_POLICIES else DEFAULT_RESTART_POLICY


def environment_list(environment: Mapping[str, Secret]) -> list[str]:
    """`NAME=value` for each variable, byte for byte. Raises Refused for what a process cannot receive; never shows a value."""
    for name, value in environment.items():
        try:
            broken = not name or "=" in name or "\0" in name + value.reveal() or not (name + value.reveal()).encode()
        except UnicodeEncodeError:
            broken = True
        if broken:
            raise Refused(
                "start workspace: an environment variable cannot be passed to a process",
                hint="names without `=`, values of UTF-8 text without a zero byte",
                code="environment",
            ) from None
    return [f"{name}={value.reveal()}" for name, value in environment.items()]


def mounts_of(spec: WorkspaceSpec, labels: Mapping[str, str], *, sessions: bool) -> list[dict[str, Any]]:
    """The mounts in the engine's words. Volumes carry our labels here too, because the engine makes a missing one itself."""

    def volume(name: str, target: str) -> dict[str, Any]:
        return {"Type": "volume", "Source": name, "Target": target, "VolumeOptions": {"Labels": dict(labels)}}

    mounts = [volume(config_volume(spec.workspace_id), CONFIGS)]
    match workspace_mount(spec):
        case None:
            return mounts
        case Bind(path, read_only):
            # `Mounts` and not `Binds`, because the latter makes a missing directory on the host, owned by root.
            mounts.append({"Type": "bind", "Source": path, "Target": "/workspace", "ReadOnly": read_only})
        case own:
            mounts.append(volume(own.name, "/workspace"))
    if sessions:
        mounts.append(volume(session_volume(spec.workspace_id), SESSIONS))
    return mounts


def tier_limits(tier: int, sizes: Mapping[int, Size]) -> dict[str, Any]:
    """What a tier adds to the host configuration. Raises Refused for tiers that are not granted yet."""
    refuse_tier(tier)
    if tier == 1:
        return {"ReadonlyRootfs": True, "Tmpfs": {"/tmp": "rw,noexec,nosuid,size=64m"}}  # noqa: S108 -- inside the container
    size = sizes[tier]
    return {"Memory": size.memory_bytes, "MemorySwap": size.memory_bytes, "NanoCpus": size.nano_cpus}


def container_config(spec: WorkspaceSpec, shape: Shape, *, network_id: str, sessions: bool) -> dict[str, Any]:
    """The body of the engine's create call. Raises Refused for a spec that may not run."""
    labels = labels_of(spec, shape.installation)
    host = {
        "Mounts": mounts_of(spec, labels, sessions=sessions),
        "NetworkMode": network_id,
        "PortBindings": {PORT: [{"HostIp": "127.0.0.1", "HostPort": ""}]},
        "RestartPolicy": {"Name": shape.restart_policy},
        "CapDrop": ["ALL"],
        "CapAdd": list(CAPABILITIES),
        "SecurityOpt": ["no-new-privileges:true"],
        "PidsLimit": _PIDS,
        "Init": True,
        "LogConfig": _LOGS,
        **tier_limits(spec.tier, shape.sizes),
    }
    return {
        "Image": spec.image,
        # An agent that tells its address by its host name must tell one that its peers can resolve.
        "Hostname": container_name(spec.workspace_id),
        "Env": environment_list(spec.environment),
        "Labels": labels,
        "ExposedPorts": {PORT: {}},
        "StopTimeout": _STOP_S,
        "HostConfig": host,
        "NetworkingConfig": {"EndpointsConfig": {network_id: {"Aliases": [container_name(spec.workspace_id)]}}},
    }
