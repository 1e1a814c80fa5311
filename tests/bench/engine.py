"""The engine alone in a process of its own: no broker, no receiver, and a world with nothing in it."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any, Final

from config import logs
from config import settings as environment
from tests.bench.toys import FIVE, ONE
from worker.runtime import Runtime

#: The variable that names a file: as long as it is not there, nothing is claimed, so that several processes begin together.
GO: Final = "BENCH_GO"


class Nowhere:
    """A world that has one queue and nothing behind it."""

    def __init__(self) -> None:
        self._gone = False

    def queues(self) -> Sequence[str]:
        self._gone = self._gone or Path(os.environ[GO]).exists()
        return ["bench"] if self._gone else []


def main() -> int:
    """Until SIGTERM."""
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    own = environment.load()
    logs.set_up(form=own.log_format, level=own.log_level)
    runtime = Runtime.start(own, {kind.name: kind for kind in (FIVE, ONE)}, _assemble)
    while not stop.wait(3600):
        continue
    runtime.close()
    return 0


def _assemble(_settings: object, _engine: object, _process_id: int, _closing: ExitStack) -> Any:
    return Nowhere()


if __name__ == "__main__":
    sys.exit(main())
