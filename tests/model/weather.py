"""What may go wrong in one seed: some seeds have every fault, some a single one, because each hides others."""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Weather:
    """Chances per round trip (faults) and per effect (answers), between 0 and 1."""

    kill: float
    freeze: float
    lost_request: float
    lost_reply: float
    slow: float
    pace: float  #: an effect takes up to so many seconds
    early: float
    busy: float
    fatal: float
    blocked: float
    bug: float
    rows: float
    hosts: int
    operators: int  #: how many things people ask for


def weather(rng: random.Random) -> Weather:
    """Draw it."""

    def chance(most: float) -> float:
        return rng.random() * most if rng.random() < 0.5 else 0.0

    return Weather(
        kill=chance(0.06),
        freeze=chance(0.03),
        lost_request=chance(0.05),
        lost_reply=chance(0.1),
        slow=chance(0.05),
        pace=rng.choice((0.02, 0.5, 3.0)),
        early=chance(0.3),
        busy=chance(0.3),
        fatal=chance(0.15),
        blocked=chance(0.1),
        bug=chance(0.05),
        rows=rng.choice((0.0, 0.3, 1.0)),
        hosts=rng.choice((1, 2)),
        operators=rng.randrange(8),
    )
