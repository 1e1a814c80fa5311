"""Replay one seed of the simulation and print its moves."""

import logging
import sys

import structlog

from tests.model.simulation import Simulation
from tests.model.watch import Broken


def main() -> int:
    """Exit code 1 when the seed breaks a promise."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    simulation = Simulation(int(sys.argv[1]), say=print)
    print(simulation.weather)  # noqa: T201
    try:
        did = simulation.run()
    except Broken as broken:
        print(f"broken: {broken}")  # noqa: T201
        return 1
    print(dict(did))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
