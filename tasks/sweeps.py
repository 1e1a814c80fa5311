"""What comes round by itself. Sweeps are not jobs: they change nothing outside and need no undo."""

from datetime import timedelta
from typing import Final

from worker.engine.clock import Schedule
from worker.store import sweeps

SCHEDULES: Final = (
    Schedule("mend", timedelta(minutes=5), sweeps.mend, "free jobs that wait for nothing; there should be none"),
    Schedule("durations", timedelta(minutes=10), sweeps.durations, "measure how long steps took lately, for the ETA"),
    Schedule("retention", timedelta(hours=1), sweeps.retention, "forget jobs that came to rest long ago"),
)
