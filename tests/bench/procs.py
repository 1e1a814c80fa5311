"""What the kernel says of processes: their children, their memory, their time."""

import os
from pathlib import Path


def family(pid: int) -> list[int]:
    """The process and all below it."""
    below = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return [pid, *(one for child in below for one in family(child))]


def known() -> bool:
    """Whether this kernel says it at all: only Linux has these files."""
    return Path("/proc/self/smaps_rollup").exists()


def cpu_s(pid: int) -> float:
    """Seconds of CPU that the process has used, of its own and of the kernel for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int, what: str) -> float:
    """`Rss` or `Pss` of the process in MiB; Pss shares what several processes map among them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    return 0.0
