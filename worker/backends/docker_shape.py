"""What a workspace looks like to a Docker engine: the pure part, so that tiers and mounts are tested without one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from worker.backends.mounts import Bind, workspace_mount
from worker.backends.names import config_volume, labels_of, session_volume
from worker.backends.tiers import DEFAULT_SIZES, Reach, Size, reach_of
from worker.domain import DEFAULT_TIER, Secret, WorkspaceSpec, container_name
from worker.errors import Refused

PORT: Final = "8000/tcp"
CONFIGS: Final = "/configs"
SESSIONS: Final = "/root/.claude/sessions"
ENGINE_SOCKET: Final = "/var/run/docker.sock"

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
    if reach_of(spec.tier).engine_socket:
        mounts.append({"Type": "bind", "Source": ENGINE_SOCKET, "Target": ENGINE_SOCKET})
    return mounts


def tier_limits(tier: int, sizes: Mapping[int, Size], cores: int) -> dict[str, Any]:
    """How much of the host's memory and `cores` a tier has; what is no tier has as much as tier 2."""
    if tier == 1:
        return {"ReadonlyRootfs": True, "Tmpfs": {"/tmp": "rw,noexec,nosuid,size=64m"}}  # noqa: S108 -- inside the container
    size = sizes.get(tier, sizes[DEFAULT_TIER])
    # All there are, where the tier would have more: an engine refuses a quota that its host cannot fill. None would be no limit.
    quota = min(size.nano_cpus, max(1, cores) * 1_000_000_000)
    return {"Memory": size.memory_bytes, "MemorySwap": size.memory_bytes, "NanoCpus": quota}


def container_config(spec: WorkspaceSpec, shape: Shape, *, network_id: str, sessions: bool, cores: int) -> dict[str, Any]:
    """The body of the engine's create call on a host of so many cores. Raises Refused for a spec that may not run."""
    labels = labels_of(spec, shape.installation)
    reach = reach_of(spec.tier)
    host = {
        "Mounts": mounts_of(spec, labels, sessions=sessions),
        "RestartPolicy": {"Name": shape.restart_policy},
        # The engine leaves it out among the host's processes, where none is the first: TERM ends each, and the host's init reaps.
        "Init": True,
        "LogConfig": _LOGS,
        **_network_mode(reach, network_id),
        **_privileges(reach),
        **tier_limits(spec.tier, shape.sizes, cores),
    }
    return {
        **_attachment(reach, network_id, container_name(spec.workspace_id)),
        "Image": spec.image,
        # An agent that tells its address by its host name must tell one that its peers can resolve.
        "Hostname": container_name(spec.workspace_id),
        "Env": environment_list(spec.environment),
        "Labels": labels,
        "ExposedPorts": {PORT: {}},
        "StopTimeout": _STOP_S,
        "HostConfig": host,
    }


def _network_mode(reach: Reach, network_id: str) -> dict[str, Any]:
    """No port is published from the host's own network: what listens there listens on the host."""
    if reach.host_network:
        return {"NetworkMode": "host"}
    return {"NetworkMode": network_id, "PortBindings": {PORT: [{"HostIp": "127.0.0.1", "HostPort": ""}]}}


def _attachment(reach: Reach, network_id: str, alias: str) -> dict[str, Any]:
    """Where its peers find it by name. On the host's own network nobody does: the engine knows no aliases there."""
    return {} if reach.host_network else {"NetworkingConfig": {"EndpointsConfig": {network_id: {"Aliases": [alias]}}}}


def _privileges(reach: Reach) -> dict[str, Any]:
    """All or as little as the entry point needs; nothing between, because what is privileged ignores the rest or breaks on it."""
    if not reach.privileged:
        return {
            "CapDrop": ["ALL"],
            "CapAdd": list(CAPABILITIES),
            "SecurityOpt": ["no-new-privileges:true"],
            "PidsLimit": _PIDS,
        }
    return {"Privileged": True, **({"PidMode": "host"} if reach.host_pids else {})}
