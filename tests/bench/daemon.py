"""`molecule-worker run` with three more kinds in its catalogue and, when asked, a stopwatch around what it calls.

Everything else is the daemon itself: its supervisor, its processes, its doorbells.
"""

import os
import sys

from tests.bench import spans
from tests.bench.toys import HELD, STAMPED
from worker.app import app
from worker.cli import context, daemon


def main() -> int:
    """Until it is stopped; the daemon's own exit code."""
    for kind in (STAMPED, HELD):
        app.add_kind(kind)
    own = context.settings()
    daemon.bring_to_head(own)
    if folder := os.environ.get(spans.FOLDER):
        spans.watch(folder)
    return daemon.supervise(own, ("jobs", "receiver", "clock"))


if __name__ == "__main__":
    sys.exit(main())
