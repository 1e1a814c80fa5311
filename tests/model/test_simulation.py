"""Thousands of histories of the real engine over a plain model of its store, and proof that they would find a fault."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.model.rows import Child, Job, StepRow
from tests.model.simulation import Simulation
from tests.model.store import Store
from tests.model.watch import Broken
from tests.model.worker import Lost, Pen
from tests.system.size import full
from worker.engine.drive import Record
from worker.engine.lease import Lease
from worker.engine.machine import Facts
from worker.engine.walk import Reply
from worker.errors import JournalLost

SEEDS = 50_000 if full() else 3_000
#: So many seeds at most find any of the faults below.
ENOUGH = 1_000


def run(seeds: range, **parts: Any) -> Counter[str]:
    did: Counter[str] = Counter()
    for seed in seeds:
        try:
            did += Simulation(seed, **parts).run()
        except Broken as broken:
            raise AssertionError(f"seed {seed}: {broken}\nreplay it: python -m tests.model {seed}") from broken
    return did


@pytest.mark.timeout(3600 if full() else 180)
def test_no_history_breaks_a_promise_of_the_engine() -> None:
    did = run(range(SEEDS))

    print(f"{SEEDS} seeds:", ", ".join(f"{count} {what}" for what, count in sorted(did.items())))  # noqa: T201
    happened = {
        "kills",
        "freezes",
        "lost replies",
        "resignations",
        "restarts",
        "takeovers by session",
        "takeovers by lease",
        "stale writes refused",
    }
    assert happened <= set(did)
    assert {"succeeded", "failed", "cancelled", "skips", "retries from a step"} <= set(did)


def test_a_seed_is_the_same_history_each_time() -> None:
    def moves(seed: int) -> list[str]:
        lines: list[str] = []
        Simulation(seed, say=lines.append).run()
        return lines

    assert [moves(seed) for seed in range(20)] == [moves(seed) for seed in range(20)]


class Fenceless(Store):
    """Takes a decision from whoever brings it."""

    def apply(self, record: Record) -> Reply | None:
        return super().apply({**record, "fence": self.jobs[record["job"]].fence})


class Open(Store):
    """Lets a subject be held twice."""

    def _holder(self, subject: str) -> str | None:
        return None


class Forgetful(Store):
    """Does not tell what earlier claims have done."""

    def past(self, job: Job) -> Mapping[tuple[str, int], StepRow]:
        return {}


class Deaf(Store):
    """Forgets a call that comes while the job runs."""

    def _call_for(self, job: Job, *, also_blocked: bool) -> None:
        super()._call_for(job, also_blocked=also_blocked)
        job.woken = job.woken and job.state != "running"


class Crowded(Store):
    """Leaves parked jobs where they are."""

    def _call(self) -> None:
        pass


class Mute(Store):
    """Does not tell a job that it shall stop."""

    def apply(self, record: Record) -> Reply | None:
        reply = super().apply(record)
        return replace(reply, stop=None) if reply else None


class Blind(Store):
    """Takes no work back from the dead."""

    def orphans(self) -> list[Job]:
        return []


class Polite(Store):
    """Lets a job that was superseded in its last step succeed."""

    def _move(self, job: Job, record: Record) -> bool:
        by, job.superseded_by = job.superseded_by, None
        again = super()._move(job, record)
        job.superseded_by = by
        return again


class Greedy(Store):
    """Takes a job that a parent only joined for one that it had made."""

    def _start_children(self, parent: Job, children: list[Child]) -> None:
        super()._start_children(parent, children)
        for child in children:
            child.made = child.job is not None


class Twice(Pen):
    """Writes rows again after a lost answer, without a look at what is written."""

    def _written(self, record: Record) -> Reply | None:
        return None


class Careless(Pen):
    """Takes a lost answer for a yes."""

    def apply(self, record: Record) -> Reply | None:
        try:
            return self._worker.call("apply", lambda: self._write(record))
        except Lost:
            return Reply(None, {})

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        try:
            return super().apply_with(record, rows)
        except JournalLost:
            return Reply(None, {})


class Endless(Lease):
    """A right to work that never ends."""

    def valid(self) -> bool:
        return True


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"store": Fenceless}, id="a store that does not check fences"),
        pytest.param({"store": Open}, id="a claim that takes a subject which is held"),
        pytest.param({"store": Forgetful}, id="a claim that forgets which steps are done"),
        pytest.param({"store": Deaf}, id="a wait that does not hear a call which came while it ran"),
        pytest.param({"store": Crowded}, id="an end that lets nobody in"),
        pytest.param({"store": Mute}, id="a checkpoint that does not say that a cancel was asked for"),
        pytest.param({"store": Blind}, id="a store that takes nothing back from the dead"),
        pytest.param({"store": Polite}, id="a superseded job that succeeds"),
        pytest.param({"store": Greedy}, id="a parent that cancels what it only joined"),
        pytest.param({"pen": Twice}, id="a journal that writes rows again after a lost answer"),
        pytest.param({"pen": Careless}, id="a journal that takes a lost answer for a yes"),
        pytest.param({"lease": Endless}, id="a lease that never ends"),
    ],
)
def test_the_simulation_finds(fault: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match=r"replay it: python -m tests\.model"):
        run(range(ENOUGH), **fault)
