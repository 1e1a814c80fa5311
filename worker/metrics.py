"""What a process counts. The counts of one daemon's processes are added up when somebody asks (worker/admin.py).

prometheus_client keeps them in files that are mapped into memory, one set for each place in the daemon and not for each pid:
who starts again in a dead process's place goes on with its numbers, so nothing has to be cleaned up and no count is lost.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values

PREFIX: Final = "molecule_worker"
#: Seconds; from a bare checkpoint to a build, and to a job that waited for a person.
_STEP: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10, 60, 300, 1800)
_JOB: Final = (0.01, 0.05, 0.25, 1, 5, 30, 120, 600, 3600, 86400)
_WAIT: Final = (0.005, 0.025, 0.1, 0.5, 1, 2.5, 10, 60, 600, 3600)
_CLAIM: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)


class _Children(dict[tuple[str, ...], Any]):
    """A metric's children by their labels, because the metric's own look-up costs more than the count."""

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self._metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> Any:
        child = self[labels] = self._metric.labels(*labels)
        return child


class Meters:
    """One process's counters. Every label has few values: kinds, their steps and our own codes."""

    def __init__(self, place: str = "worker") -> None:
        #: Asked directly only where one process counts for itself, as in tests.
        self.registry = CollectorRegistry()
        self.claim = self._histogram("claim_seconds", "How long a look for due jobs took in the database.", _CLAIM)
        self.wait = _Children(self._histogram("claim_wait_seconds", "From due to claimed.", _WAIT, "kind"))
        self.step = _Children(self._histogram("step_seconds", "From entering a step to its end.", _STEP, "kind", "step"))
        self.job = _Children(self._histogram("job_seconds", "From the enqueue to rest.", _JOB, "kind", "state"))
        self.retries = _Children(self._counter("retries", "Failed attempts that are tried again, by error code.", "kind", "class"))
        self.takeovers = _Children(self._counter("takeovers", "Jobs taken back from the dead: killed or silent.", "by"))
        self.stale = self._counter("stale_writes_rejected", "Decisions refused because another process held the subject.")
        self.rung = _Children(self._counter("doorbells_sent", "Celery messages.", "kind"))
        self.lost = _Children(self._counter("dispatch_lost", "Jobs that were rung for, and nobody came.", "kind"))
        self.crashes = _Children(self._counter("crashes", "Processes that ended unasked and were started again.", "process"))
        self._place = place
        self._margin = Gauge(
            "heartbeat_margin_seconds",
            "How much of the lease was left when it was last renewed.",
            ("process",),
            namespace=PREFIX,
            registry=self.registry,
            multiprocess_mode="mostrecent",
        )
        for by in ("session", "lease"):
            self.takeovers[(by,)].inc(0)  # so that the first one is seen as a rise

    def beat(self, margin_s: float) -> None:
        """A renewed lease; only a process that has one is seen."""
        self._margin.labels(self._place).set(margin_s)

    def _counter(self, name: str, sentence: str, *labels: str) -> Counter:
        return Counter(name, sentence, labels, namespace=PREFIX, registry=self.registry)

    def _histogram(self, name: str, sentence: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, sentence, labels, namespace=PREFIX, registry=self.registry, buckets=buckets)


class _Own:
    """The meters of this process; one, because a metric's name can be counted only once in a file."""

    meters: Meters | None = None


def begin(place: str, folder: Path) -> Meters:
    """Count in `folder` (which `PROMETHEUS_MULTIPROC_DIR` names) at this place of the daemon, after the fork."""
    again = any(folder.glob(f"*_{place}.db"))
    values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]
    _Own.meters = Meters(place)
    _Own.meters.crashes[(place,)].inc(1 if again else 0)
    return _Own.meters


def own() -> Meters:
    """This process's. Where nobody began, it counts for itself."""
    if _Own.meters is None:
        _Own.meters = Meters()
    return _Own.meters


def labels_of(record: Mapping[str, Any]) -> str:
    """The step's name as people see it."""
    name = str(record["name"])
    return name if record["direction"] == "forward" else f"undo {name}"
