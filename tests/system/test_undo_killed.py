"""Whichever step fails: `kill -9` before, in and after each undo and each of its checkpoints, and all of it is undone in order."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.conftest import fresh_database
from tests.system.house import House, house, settings_around
from tests.system.size import full
from tests.system.undoing import MOMENTS, kinds
from tests.waiting import until
from worker.store import kinds as catalogue
from worker.store import requests

MAKE, SPREAD, _ = kinds()
STEPS = MAKE.machine.names


@dataclass(frozen=True)
class Case:
    """A job that is turned back at its step `fails`, and killed at `spot` on its way back."""

    kind: str
    fails: str
    spot: str

    @property
    def undone(self) -> list[str]:
        names = STEPS if self.kind == MAKE.name else SPREAD.machine.names
        return list(reversed(names[: names.index(self.fails) + 1]))


def cases() -> list[Case]:
    """Every undo of every failure at every moment; in CI every second of the last failure's, and one of each other."""
    made = [
        Case(MAKE.name, fails, f"back.{undo}.{moment}")
        for n, fails in enumerate(STEPS)
        for m, undo in enumerate(STEPS[: n + 1])
        for k, moment in enumerate(MOMENTS)
        if full() or (k + m) % 2 == 0 == len(STEPS) - 1 - n or k == (n + 2 * m) % len(MOMENTS)
    ]
    return made + [Case(SPREAD.name, "many", f"back.{undo}.{moment}") for undo in SPREAD.machine.names for moment in MOMENTS]


@pytest.fixture(scope="module")
def undoing(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder: Path = tmp_path_factory.mktemp("undoing")

    def prepare(under: House) -> None:
        with under.database.engine.begin() as connection:
            catalogue.write(connection, kinds(), backend="memory", host="local")

    with fresh_database(postgres) as database:
        around = settings_around(database, folder, processes=4, MOLECULE_WORKER_SLOTS="2")
        with house(database, folder, around, module="tests.system.undoing", before=prepare) as under:
            yield under


def begin(under: House, case: Case, *refused: str) -> str:
    """Its job, with the wishes standing before it can start. `refused` are undos that never succeed."""
    with under.database.engine.begin() as connection:
        job = requests.enqueue(connection, case.kind, {"id": str(uuid4())})[0]
        if case.kind == MAKE.name:
            under.wish(job, f"forward.{case.fails}.before", "refuse")
        under.wish(job, case.spot, "kill")
        for undo in refused:
            under.wish(job, f"back.{undo}.before", "refuse")
    return job


def cancel_when_spread(under: House, jobs: Sequence[str]) -> None:
    query = "SELECT count(*) FROM worker.children WHERE parent = ANY (CAST(:jobs AS uuid[])) AND job_id IS NOT NULL"
    until(lambda: under.value(query, jobs=list(jobs)) == 2 * len(jobs), within=60, what="each has two children that live")
    for job in jobs:
        with under.database.engine.begin() as connection:
            requests.cancel(connection, job, "never mind", requested_by="test")


def end(under: House, jobs: Sequence[str]) -> None:
    """All of them. One whose neighbours' kills took it along too often blocks, and is asked for once more as people do."""
    unlucky = [job for job, state in under.ends(*jobs).items() if state == "blocked"]
    for job in unlucky:
        under.retry(job)
    if unlucky:
        end(under, jobs)


def faults(under: House, job: str, case: Case, end: str, code: str) -> list[str]:
    """What is wrong with how it was undone: nothing, when the list is empty."""
    back = [line["step"] for line in under.lines("enter", job) if line["direction"] == "back"]
    row = under.rows("SELECT state, error ->> 'code' AS code, error ->> 'step' AS step FROM worker.jobs WHERE id = :j", j=job)[0]
    noted = Counter(who for (who,) in under.rows("SELECT actor FROM worker.job_events WHERE job_id = :j AND what = 'noted'", j=job))
    crashes = under.takeovers(job).total()
    facts = {
        "order": ([step for step, _ in groupby(back)], case.undone),
        "end": (tuple(row), (end, code, case.fails)),
        "own rows": ({what: n for what, n in noted.items() if n != 1}, {}),
        "undone in rows": ({what for what in noted if what.startswith("back")}, {f"back:{step}" for step in case.undone}),
    }
    found = [f"{case}: {name} {seen} instead of {wanted}" for name, (seen, wanted) in facts.items() if seen != wanted]
    too_often = {step: n for step, n in Counter(back).items() if n > 1 + crashes}
    return found + [f"{case}: {step} {n} times after {crashes} crashes" for step, n in too_often.items()]


def test_killed_at_any_moment_of_any_undo_what_was_begun_is_undone_newest_first(undoing: House) -> None:
    left, found = cases(), list[str]()
    jobs: dict[str, Case] = {}
    wanted = len(left)
    # A kill for another job can take a process away in the moment in which this one should have died: that one is made again.
    for _ in range(5):
        made = {begin(undoing, case): case for case in left}
        cancel_when_spread(undoing, [job for job, case in made.items() if case.kind == SPREAD.name])
        end(undoing, list(made))
        for job, case in made.items():
            cancelled = case.kind == SPREAD.name
            found += faults(undoing, job, case, "cancelled" if cancelled else "failed", "cancelled" if cancelled else "as_told")
        jobs.update(made)
        left = [case for job, case in made.items() if not undoing.granted(job, case.spot, "kill")]
        if not left:
            break
    effects = undoing.effects(list(jobs))
    undoing.tell(
        f"undo: {wanted} kills, takeovers {dict(undoing.takeovers())}, effects {effects.total()} for {len(effects)} expected, "
        f"{undoing.value('SELECT count(*) FROM worker.children')} children"
    )
    assert left == []
    assert found == []
    alive = "SELECT count(*) FROM worker.jobs WHERE kind = 'undo.child' AND state <> 'cancelled'"
    assert undoing.value(alive) == 0


def test_killed_beside_an_undo_that_was_skipped_the_others_are_undone(undoing: House) -> None:
    case = {moment: Case(MAKE.name, "four", f"back.two.{moment}") for moment in MOMENTS}
    jobs = {begin(undoing, each, "three"): each for each in case.values()}
    stuck = "SELECT count(*) FROM worker.job_status WHERE id = ANY (CAST(:jobs AS uuid[])) AND step = 'three' AND waiting_for LIKE '%act as told%'"
    until(lambda: undoing.value(stuck, jobs=list(jobs)) == len(jobs), within=60, what="the operator sees which undo fails")
    for job in jobs:
        until(lambda: skipped(undoing, job), what="the skip")  # noqa: B023  because it is called at once
    undoing.ends(*jobs)

    ends = undoing.rows(
        "SELECT DISTINCT state, error ->> 'code', error ->> 'step' FROM worker.jobs WHERE id = ANY (CAST(:j AS uuid[]))",
        j=list(jobs),
    )
    order = [
        [step for step, _ in groupby(line["step"] for line in undoing.lines("enter", job) if line["direction"] == "back")]
        for job in jobs
    ]
    assert [tuple(end) for end in ends] == [("failed", "as_told", "four")]
    assert order == [["four", "two", "one"]] * len(jobs)
    assert undoing.value("SELECT count(*) FROM worker.debts") == len(jobs)


def skipped(under: House, job: str) -> bool:
    """Asked while it waits; between two attempts it runs, and a skip would be refused."""
    waits = text("SELECT FROM worker.jobs WHERE id = CAST(:j AS uuid) AND state IN ('waiting', 'blocked') FOR UPDATE")
    with under.database.engine.begin() as connection:
        if not connection.execute(waits, {"j": job}).all():
            return False
        return bool(
            connection.execute(text("SELECT worker.skip(CAST(:j AS uuid), 'three', 'it is gone')"), {"j": job}).scalar_one()
        )
