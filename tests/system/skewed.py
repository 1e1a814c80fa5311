"""The daemon of tests/system/hostile.py under a wall clock that is wrong, and jumps.

The clock's two sources in Python are replaced before anything else is imported: `time.time` with its relatives, and
`datetime.datetime`, whose instances are real ones. MOLECULE_TEST_CLOCK says by how many seconds it is off; a second number, by
how many more every other second.
"""

import datetime as dt
import os
import sys
import time
from datetime import datetime as Real  # noqa: N812  because the name is about to mean something else
from pathlib import Path
from typing import Any, Final

_REAL_TIME, _STARTED = time.time, time.monotonic()
VARIABLE: Final = "MOLECULE_TEST_CLOCK"
_OFF, _JUMP = (float(number) for number in os.environ.get(VARIABLE, "0,0").split(","))


def off() -> float:
    """By how many seconds the clock is wrong right now."""
    return _OFF + (_JUMP if int(time.monotonic() - _STARTED) % 2 else 0.0)


def wrong_time() -> float:
    """Seconds since 1970, wrongly."""
    return _REAL_TIME() + off()


class _Kind(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, Real)


class WrongDatetime(Real, metaclass=_Kind):
    """What `datetime.datetime` is to everybody who imports it from now on."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        return Real.fromtimestamp(wrong_time(), tz)

    @classmethod
    def utcnow(cls) -> Any:
        return Real.fromtimestamp(wrong_time(), dt.UTC).replace(tzinfo=None)

    @classmethod
    def today(cls) -> Any:
        return cls.now()


def push() -> None:
    """From here on the clock is wrong."""
    real_gmtime, real_localtime = time.gmtime, time.localtime
    time.time = wrong_time
    time.time_ns = lambda: int(wrong_time() * 1e9)
    time.gmtime = lambda seconds=None: real_gmtime(wrong_time() if seconds is None else seconds)
    time.localtime = lambda seconds=None: real_localtime(wrong_time() if seconds is None else seconds)
    dt.datetime = WrongDatetime  # type: ignore[misc]


if __name__ == "__main__":
    push()
    from tests.system import dying, hostile

    def add(script: dying.Script) -> None:
        """The toys; and what this machine takes for the time, as everybody in it reads it."""
        hostile.add(script)
        script.note("clock", time=time.time(), datetime=dt.datetime.now(dt.UTC).timestamp())

    sys.exit(dying.main(Path(sys.argv[1]), add))
