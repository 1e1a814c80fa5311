"""How much of a host each tier may use, because operators change the sizes and the platform fixes the rules."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from worker.errors import Refused

#: TIER2_MEMORY_MB and the like: digits only, as the platform reads them, and few enough for the engine's integers
_POSITIVE = re.compile(r"0*[1-9][0-9]{0,8}\Z", re.ASCII)
_SHARES_PER_CORE: Final = 1024
_RUNNABLE: Final = (1, 2)


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


def refuse_tier(tier: int) -> None:
    """Raise Refused for a tier that needs privileges on the host: this release does not grant them."""
    if tier not in _RUNNABLE:
        raise Refused(
            f"start workspace: tier {tier} needs privileges on the host, which come with a later release",
            hint="choose tier 1 or 2",
            code="tier_unavailable",
        )
