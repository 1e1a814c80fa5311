"""The jobs of tests/system/hostile.py: how they are stored, and what must be true of them when the storm is over."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from sqlalchemy import text

from tests.system.hostile import KINDS, STEPS, WRITTEN
from tests.system.house import House
from worker.engine.kinds import Kind
from worker.store import kinds as catalogue
from worker.store import requests


def prepare(house: House) -> None:
    """What the daemon finds when it starts."""
    with house.database.engine.begin() as connection:
        connection.execute(text(WRITTEN))
        catalogue.write(connection, KINDS, backend="memory", host="local")


@dataclass
class Load:
    """Jobs on subjects; each subject has one of each kind."""

    house: House
    subject_of: dict[str, str] = field(default_factory=dict)

    def store(self, subjects: int, *, kinds: Sequence[Kind] = KINDS, hold: str | None = None) -> list[str]:
        """One job of each kind on so many new subjects, to be held at a spot; their ids."""
        stored: list[str] = []
        with self.house.database.engine.begin() as connection:
            for subject in (str(uuid4()) for _ in range(subjects)):
                made = [requests.enqueue(connection, kind.name, {"id": subject})[0] for kind in kinds]
                self.subject_of |= dict.fromkeys(made, subject)
                stored += made
            if hold is not None:
                for job in stored:
                    self.house.wish(job, hold, "hold")
        return stored

    def resting(self) -> int:
        """How many have come to rest."""
        return int(self.house.value("SELECT count(*) FROM worker.jobs WHERE kind LIKE 'hostile.%' AND state = 'succeeded'"))

    def left(self) -> int:
        """How many have not."""
        return len(self.subject_of) - self.resting()

    def faults(self) -> list[str]:
        """What is wrong when all is over: nothing, when the list is empty."""
        return [*self._lost(), *self._done_too_often(), *self._written_wrongly(), *self._fences_that_fell()]

    def effects(self) -> Counter[tuple[str, str, str]]:
        """See `House.effects`."""
        return self.house.effects(list(self.subject_of))

    def summary(self) -> str:
        """What was done, in numbers."""
        house, effects = self.house, self.effects()
        starts = len(house.lines("ready"))
        return (
            f"{len(self.subject_of)} jobs, {starts} process starts, takeovers {dict(house.takeovers())}, "
            f"{len(house.lines('refused'))} stale writes refused, effects {effects.total()} for {self.expected} expected"
        )

    @property
    def expected(self) -> int:
        """How many effects there would be in peace."""
        return len(self.subject_of) * len(STEPS)

    def _lost(self) -> list[str]:
        states = dict(map(tuple, self.house.rows("SELECT id::text, state FROM worker.jobs")))
        lost = [f"{job} is {states.get(job)}" for job in self.subject_of if states.get(job) != "succeeded"]
        never = self.expected - len(self.effects())
        return [*lost, *([f"{never} effects never ran"] if never else [])]

    def _done_too_often(self) -> list[str]:
        """An effect runs again after a takeover, and after an attempt whose decision was refused; for nothing else."""
        excused: Counter[str] = Counter()
        takeovers = "SELECT job_id::text, count(*) FROM worker.job_events WHERE what = 'taken_over' GROUP BY 1"
        attempts = "SELECT job_id::text, sum(attempt) FROM worker.steps GROUP BY 1"
        for statement in (takeovers, attempts):
            excused.update({job: int(count) for job, count in self.house.rows(statement)})
        surplus: Counter[str] = Counter()
        for (job, _, _), count in self.effects().items():
            surplus[job] += count - 1
        return [f"{job}: {n} effects too many for {excused[job]} reasons" for job, n in surplus.items() if n > excused[job]]

    def _written_wrongly(self) -> list[str]:
        written = dict(map(tuple, self.house.rows("SELECT job::text, count(*) FROM public.written GROUP BY 1")))
        return [f"{job} wrote {written.get(job, 0)} rows" for job in self.subject_of if written.get(job) != 1]

    def _fences_that_fell(self) -> list[str]:
        """By the order in which the database took the checkpoints: an older owner's never comes after a younger one's."""
        rows = self.house.rows(
            "SELECT j.subject, array_agg(s.fence ORDER BY s.finished_at) FROM worker.steps s JOIN worker.jobs j ON j.id = s.job_id "
            "WHERE j.kind LIKE 'hostile.%' GROUP BY 1"
        )
        return [f"fences of {subject}: {found}" for subject, found in rows if found != sorted(found)]
