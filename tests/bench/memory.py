"""Whether a worker process grows with the number of jobs that it has done."""

from time import monotonic
from typing import Final

from tests.bench import engines, procs
from tests.bench.ground import Database, Ground, Teller, ask
from tests.bench.table import Row
from tests.bench.toys import ONE
from tests.waiting import until

_JOBS: Final = 100_000
#: The first share of them fills caches and pools.
_WARM: Final = 0.2
_LONGEST_S: Final = 300.0
_EVERY_S: Final = 0.5
#: MiB for as many jobs, by the slope: less than what one look at the same process may differ from the next.
_FLAT_MB: Final = 1.0
_DONE: Final = "SELECT count(*) FROM worker.jobs WHERE state = 'succeeded'"
_WHAT: Final = f"memory of a worker process over {_JOBS:,} jobs"

Sample = tuple[int, float]  #: jobs done, MiB of RSS


def measure(ground: Ground, tell: Teller) -> list[Row]:
    """RSS beside the count of jobs, and the slope of the line through both."""
    target = "flat"
    if not procs.known():
        return [Row(_WHAT, "not measured: this system has no /proc/…/smaps_rollup", target=target)]
    tell.begin(f"memory: {_JOBS:,} jobs of one step")
    with ground.database() as database:
        engines.store(database, ONE, _JOBS, copied=True)
        samples = _samples(ground, database, tell)
    warm = [sample for sample in samples if sample[0] >= _WARM * _JOBS]
    slope = _slope(warm) * _JOBS
    return [
        Row(
            _WHAT,
            f"{slope:+.2f} MB per {_JOBS:,} jobs by the slope of {len(warm)} samples after the first {_WARM:.0%}",
            f"{warm[0][1]:.1f} MB after {warm[0][0]:,} jobs, {warm[-1][1]:.1f} MB after {warm[-1][0]:,}",
            f"{warm[-1][1] / warm[0][1]:.3f}×",
            f"{target}: ≤ {_FLAT_MB:g} MB",
            met=slope <= _FLAT_MB,
        )
    ]


def _samples(ground: Ground, database: Database, tell: Teller) -> list[Sample]:
    samples: list[Sample] = []
    with engines.begun(ground, database, 1) as (process,):
        last = [monotonic()]

        def look() -> bool:
            if monotonic() - last[0] < _EVERY_S:
                return False
            last[0] = monotonic()
            samples.append((int(ask(database, _DONE)), procs.memory_mb(process.pid, "Rss")))
            tell.step(samples[-1][0], _JOBS)
            return samples[-1][0] == _JOBS

        until(look, within=_LONGEST_S, what="every job to succeed")
    return samples


def _slope(samples: list[Sample]) -> float:
    """MiB for each job, by least squares."""
    mean_jobs = sum(jobs for jobs, _ in samples) / len(samples)
    mean_mb = sum(mb for _, mb in samples) / len(samples)
    spread = sum((jobs - mean_jobs) ** 2 for jobs, _ in samples)
    return sum((jobs - mean_jobs) * (mb - mean_mb) for jobs, mb in samples) / spread
