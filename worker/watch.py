"""What the admin address answers: this host's readiness, and the numbers of all its processes and of the database."""

from collections.abc import Callable, Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from threading import Lock, Thread
from time import monotonic
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from worker.errors import WorkerError
from worker.metrics import PREFIX
from worker.store import gauges, migrate

log = structlog.get_logger()

OK: Final = "ok"
_SILENT: Final = "the database does not answer"
#: Seconds for which a count of the invariants is good, because it looks at every job that is kept.
_INVARIANTS_S: Final = 60.0
#: Seconds for which what is known of the workspaces' network is good.
_NETWORK_S: Final = 10.0


class Readiness:
    """Whether this host can do its work. `queue`: None where this daemon runs no jobs."""

    def __init__(self, engine: Engine, queue: str | None) -> None:
        self._engine = engine
        self._queue = queue

    def __call__(self) -> Mapping[str, str]:
        """Each thing that is needed → ok, or why not; no address and no value of a setting."""
        checks = {"database": OK, "schema": OK} | ({} if self._queue is None else {"workers": OK})
        try:
            with self._engine.begin() as connection:
                migrate.refuse_other(connection)
                if self._queue is not None and not gauges.served(connection, self._queue):
                    checks["workers"] = f"no living process serves the queue {self._queue}"
        except SQLAlchemyError as error:
            log.debug("not ready", error=type(error).__name__)
            return {"database": _SILENT}
        except WorkerError as error:
            return {"database": OK, "schema": error.message}
        return checks


class Scrape:
    """The text that Prometheus reads."""

    def __init__(self, engine: Engine, folder: Path | None) -> None:
        self._registry = CollectorRegistry()
        if folder is not None:
            MultiProcessCollector(self._registry, path=str(folder))  # type: ignore[no-untyped-call]
        self._registry.register(_Database(engine))

    def __call__(self) -> bytes:
        """All numbers."""
        return generate_latest(self._registry)


class _Database(Collector):
    """The gauges of the database. What it does not answer is absent, and never zero."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._invariants = _Seldom(self._count_violations, _INVARIANTS_S)

    def describe(self) -> list[Metric]:
        """Nothing beforehand, because registering must not ask the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One look."""
        up = GaugeMetricFamily(f"{PREFIX}_database_up", "Whether the database answered this scrape.")
        try:
            with self._engine.begin() as connection:
                standing = gauges.look(connection)
        except SQLAlchemyError as error:
            log.warning("scrape without database", error=type(error).__name__)
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from _families(standing)
        if (found := self._invariants()) is not None:
            yield _single("invariant_violations", "Rows of worker.violations, counted at most once a minute.", found)

    def _count_violations(self) -> int | None:
        try:
            with self._engine.begin() as connection:
                return gauges.violations(connection)
        except SQLAlchemyError as error:
            log.warning("invariants not counted", error=type(error).__name__)
            return None


def _families(standing: gauges.Standing) -> Iterator[Metric]:
    most = f"at most {gauges.MOST}"
    yield _by("ready_age_seconds", f"How long the oldest due job has waited, of {most} due ones.", "kind", standing.ready_age)
    yield _by("jobs", f"Jobs that are not at rest, {most} of each state.", "state", standing.states)
    yield _by("entities_blocked", "Subjects whose job waits for a person or a release.", "kind", standing.blocked)
    yield _by("unserved_jobs", f"Due jobs that no living process serves, {most} in all.", "queue", standing.unserved)
    yield _single("relay_lag_seconds", "How long the oldest due job has not been rung for.", standing.relay_lag)
    yield _single("processes_alive", "Worker processes with a lease, of all hosts.", standing.alive)


def _by(name: str, sentence: str, label: str, found: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", sentence, labels=[label])
    for value, number in sorted(found.items()):
        family.add_metric([value], number)
    return family


def _single(name: str, sentence: str, number: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", sentence, value=number)


class _Seldom:
    """A number that is too dear for each scrape: the last one is answered while a thread looks for the next."""

    def __init__(self, ask: Callable[[], int | None], good_s: float) -> None:
        self._ask = ask
        self._good_s = good_s
        self._guard = Lock()
        self._asked = -good_s
        self._found: int | None = None
        self._asking = False

    def __call__(self) -> int | None:
        with self._guard:
            stale = not self._asking and monotonic() >= self._asked + self._good_s
            self._asking = self._asking or stale
        if stale:
            Thread(target=self._look, name="invariants", daemon=True).start()
        return self._found

    def _look(self) -> None:
        found = self._ask()
        with self._guard:
            self._found, self._asked, self._asking = found, monotonic(), False


class Network:
    """Whether an address is a workspace's; while nobody knows, every address may be one."""

    def __init__(self, subnets: Callable[[], list[str]]) -> None:
        self._subnets = subnets
        self._guard = Lock()
        self._asked = -_NETWORK_S
        self._found: list[str] | None = None

    def __call__(self, host: str) -> bool:
        """Ask the engine, at most every ten seconds."""
        with self._guard:
            if monotonic() >= self._asked + _NETWORK_S:
                self._asked = monotonic()
                try:
                    self._found = self._subnets()
                except WorkerError as error:
                    log.warning(
                        "workspace network not known", reason=error.message, effect="the admin address answers loopback only"
                    )
                    self._found = None
            found = self._found
        try:
            caller = ip_address(host)
        except ValueError:
            return True
        return found is None or any(caller in ip_network(subnet) for subnet in found)
