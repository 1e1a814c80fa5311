"""The engine alone in a process of its own: no broker, no receiver, and a world with nothing in it."""

import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from threading import Event
from typing import Any

from config import logs
from config import settings as environment
from tests.bench.toys import FIVE
from worker.runtime import Runtime


class Nowhere:
    """A world that has one queue and nothing behind it."""

    def queues(self) -> Sequence[str]:
        return ["bench"]


def main() -> int:
    """Until SIGTERM."""
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    own = environment.load()
    logs.set_up(form=own.log_format, level=own.log_level)
    runtime = Runtime.start(own, {FIVE.name: FIVE}, _assemble)
    while not stop.wait(3600):
        continue
    runtime.close()
    return 0


def _assemble(_settings: object, _engine: object, _process_id: int, _closing: ExitStack) -> Any:
    return Nowhere()


if __name__ == "__main__":
    sys.exit(main())
