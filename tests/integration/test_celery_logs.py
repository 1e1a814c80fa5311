"""What Celery would log by itself goes the way of our own lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
_PROGRAM = """
import logging
from worker.app import app
app.log.setup(loglevel="DEBUG")
logging.getLogger("celery.task").error("cannot reach %s", "redis://:hunter2@h/0")
logging.getLogger("somebody").debug("chatter")
"""


def test_celerys_own_loggers_are_set_up_as_our_settings_say_and_redacted() -> None:
    around = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "MOLECULE_WORKER_LOG_FORMAT": "json"}
    done = subprocess.run([sys.executable, "-c", _PROGRAM], env=around, cwd=ROOT, capture_output=True, text=True, check=True)

    [line] = map(json.loads, done.stderr.splitlines())
    assert (line["level"], line["event"]) == ("error", "cannot reach redis://[redacted]@h/0")
