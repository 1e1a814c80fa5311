"""`make bench`: measure, and print one table. The exit code says whether it could be measured, never how fast it was."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Final

from tests.bench import backlog, doorbell, idle, memory, provision, takeover, throughput
from tests.bench.ground import Ground, Teller
from tests.bench.table import Row, show
from worker.errors import WorkerError

Measure = Callable[[Ground, Teller], list[Row]]
#: In the order of the table.
_ALL: Final[Mapping[str, Measure]] = {
    "throughput": throughput.measure,
    "backlog": backlog.measure,
    "memory": memory.measure,
    "doorbell": doorbell.measure,
    "provision": provision.measure,
    "takeover": takeover.measure,
    "idle": idle.measure,
}


def main(wanted: list[str]) -> int:
    """All measurements, or those that are named."""
    unknown = set(wanted) - set(_ALL)
    if unknown:
        sys.stderr.write(f"error: bench: there is no {min(unknown)}\nhint: one of {', '.join(_ALL)}\n")
        return 2
    tell, rows, broken = Teller(), list[Row](), 0
    with Ground.open() as ground:
        load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before"
        for name in wanted or _ALL:
            try:
                rows += _ALL[name](ground, tell)
            except (AssertionError, WorkerError, OSError) as error:  # a wait that was too long, or a service that went away
                rows.append(Row(name, f"could not be measured: {error}"))
                broken += 1
        title = f"{ground.durability()}; {load}, {os.getloadavg()[0]:.1f} after"
    show(rows, title)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
