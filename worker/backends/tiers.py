"""What of a host each tier has, because operators change the sizes and the platform fixes the rest."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from worker.errors import BackendBusy, Refused

#: TIER2_MEMORY_MB and the like: digits only, as the platform reads them, and few enough for the engine's integers
_POSITIVE = re.compile(r"0*[1-9][0-9]{0,8}\Z", re.ASCII)
_SHARES_PER_CORE: Final = 1024


@dataclass(frozen=True, slots=True)
class Size:
    """Hard limits of one container."""

    memory_mb: int  #: MiB; swap is not given on top
    cpu_shares: int  #: 1024 = one core; a quota, not a weight

    @property
    def memory_bytes(self) -> int:
        """The limit as the engine wants it."""
        return self.memory_mb * 1024 * 1024

    @property
    def nano_cpus(self) -> int:
        """The quota as the engine wants it: billionths of a core."""
        return self.cpu_shares * 1_000_000_000 // _SHARES_PER_CORE


DEFAULT_SIZES: Final[Mapping[int, Size]] = {2: Size(512, 1024), 3: Size(2048, 2048), 4: Size(4096, 4096)}


def sizes_of(texts: Mapping[str, str]) -> dict[int, Size]:
    """The size of each limited tier from TIERn_MEMORY_MB and TIERn_CPU_SHARES; what is no positive number means the default."""

    def number(name: str, default: int) -> int:
        text = texts.get(name, "")
        return int(text) if _POSITIVE.match(text) else default

    return {
        tier: Size(number(f"TIER{tier}_MEMORY_MB", size.memory_mb), number(f"TIER{tier}_CPU_SHARES", size.cpu_shares))
        for tier, size in DEFAULT_SIZES.items()
    }


@dataclass(frozen=True, slots=True)
class Reach:
    """What a container has of the host itself."""

    privileged: bool = False  #: every capability and every device
    host_pids: bool = False  #: sees and signals the host's processes
    host_network: bool = False  #: has no address of its own: its port 8000 is the host's
    engine_socket: bool = False  #: may ask the engine for anything


#: Tiers 1 and 2, and whatever is no tier, have nothing of the host.
_REACHES: Final[Mapping[int, Reach]] = {
    3: Reach(privileged=True, host_pids=True),
    4: Reach(privileged=True, host_pids=True, host_network=True, engine_socket=True),
}


def reach_of(tier: int) -> Reach:
    """What the tier has of its host."""
    return _REACHES.get(tier, Reach())


def refuse_tier(action: str, tier: int, *, saas: bool) -> None:
    """Raise Refused for a tier that is root on a host which tenants share. `action` reads "verb noun".

    The platform says of tier 4: "the docker socket = root on the host → never on a multi-tenant host". Tier 3 has no socket
    and is root there all the same, because whoever is privileged among the host's processes enters process 1 or mounts the
    host's disk. A backend that gives every workspace a machine of its own shares no host and need not ask.
    """
    if saas and reach_of(tier).privileged:
        raise Refused(
            f"{action}: tier {tier} is root on the host, which tenants share on this installation",
            hint="choose tier 1 or 2",
            code="tier_refused",
        )


def second_on_host() -> BackendBusy:
    """The host's network has one port 8000: whoever called a second workspace there would reach the first."""
    return BackendBusy(
        "start container: another tier 4 workspace of this host has the port",
        hint="one at a time runs on a host; delete the other one, or choose another tier",
        code="port_taken",
    )
