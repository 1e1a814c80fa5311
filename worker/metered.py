"""The engine's ports, counted: what is claimed, decided, taken over and rung for. The engine itself knows of no metrics."""

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Final

from worker.engine.doorbell import Ring
from worker.engine.drive import Journal, Record
from worker.engine.intake import Claims
from worker.engine.lease import Beat, Register
from worker.engine.machine import Facts
from worker.engine.walk import Claimed, Reply
from worker.metrics import Meters, labels_of

#: Seconds after a bell could not be sent in which no job counts as lost: nobody was rung for.
_AWAY_S: Final = 30.0


class MeteredClaims:
    """Implements `worker.engine.intake.Claims`."""

    def __init__(self, own: Claims, meters: Meters) -> None:
        self._own = own
        self._meters = meters

    def claim(self, queues: Sequence[str], most: int, ids: Sequence[str] | None = None) -> list[Claimed]:
        """See the port."""
        began = monotonic()
        claimed = self._own.claim(queues, most, ids)
        self._meters.claim.observe(monotonic() - began)
        for job in claimed:
            self._meters.wait[(job.kind,)].observe(max(0.0, job.waited.total_seconds()))
        return claimed


class MeteredJournal:
    """One job's view of the journal; implements `worker.engine.drive.Journal`."""

    def __init__(self, own: Journal, job: Claimed, meters: Meters) -> None:
        self._own = own
        self._job = job
        self._meters = meters
        self._claimed = monotonic()

    def apply(self, record: Record) -> Reply | None:
        """See the port."""
        return self._counted(record, self._own.apply(record))

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        """See the port."""
        return self._counted(record, self._own.apply_with(record, rows))

    def _counted(self, record: Record, reply: Reply | None) -> Reply | None:
        meters, kind = self._meters, self._job.kind
        if reply is None:
            meters.stale.inc()
            return None
        status, follows = record["status"], record["next"]
        if status in {"done", "failed"}:
            meters.step[(kind, labels_of(record))].observe(record["took_ms"] / 1000)
        elif status == "waiting" and follows == "wait" and record["error"] is not None:
            meters.retries[(kind, str(record["error"]["code"]))].inc()
        if follows == "rest":
            since = self._job.age.total_seconds() + monotonic() - self._claimed
            # Superseded in its very last moment it is cancelled, whatever was decided.
            state = "cancelled" if reply.stop == "superseded" else str(record["rest"])
            meters.job[(kind, state)].observe(max(0.0, since))
        return reply


class MeteredRegister:
    """Implements `worker.engine.lease.Register`."""

    def __init__(self, own: Register, meters: Meters, *, length_s: float) -> None:
        self._own = own
        self._meters = meters
        self._length_s = length_s
        self._sent = monotonic()
        self.process_id = own.process_id

    def beat(self) -> Beat:
        """See the port."""
        sent = monotonic()
        answer = self._own.beat()
        self._meters.beat(self._sent + self._length_s - monotonic())
        self._sent = sent
        return answer

    def reap(self) -> Mapping[str, int]:
        """See the port."""
        taken = self._own.reap()
        for by, count in taken.items():
            self._meters.takeovers[(by,)].inc(count)
        return taken

    def resign(self) -> None:
        """See the port."""
        self._own.resign()

    def close(self) -> None:
        """See the port."""
        self._own.close()


class MeteredPublisher:
    """What the relay rings with, counted."""

    def __init__(self, own: Callable[[Ring], bool], meters: Meters) -> None:
        self._own = own
        self._meters = meters
        self._away_until = 0.0

    def __call__(self, ring: Ring) -> bool:
        """Publish one bell; False when the broker is away."""
        if not self._own(ring):
            self._away_until = monotonic() + _AWAY_S
            return False
        self._meters.rung[(ring.kind,)].inc()
        if ring.lost and monotonic() > self._away_until:
            self._meters.lost[(ring.kind,)].inc()
        return True
