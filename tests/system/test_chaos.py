"""Many jobs on few subjects, and processes that are killed at random: judged by a ledger outside of the database."""

import os
import random
import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event
from time import monotonic
from uuid import uuid4

import pytest

from tests.conftest import fresh_database
from tests.system.chaotic import KINDS, STEPS
from tests.system.house import PATIENCE, REST, House, house, settings_around
from worker.store import kinds as catalogue
from worker.store import requests

SUBJECTS = 20
KILLS = 12


@dataclass(frozen=True)
class Aftermath:
    """What is to be judged."""

    house: House
    subject_of: Mapping[str, str]  #: by job, in the order in which they should run on their subject
    killed: Mapping[int, float]  #: by pid, monotonic seconds


@pytest.fixture(scope="module")
def aftermath(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    """Everything is stored before the first process starts, and over when the tests look."""
    folder: Path = tmp_path_factory.mktemp("chaos")
    with fresh_database(postgres) as database:
        around = settings_around(database, folder, processes=3, MOLECULE_WORKER_SLOTS="4")
        with house(database, folder, around, module="tests.system.chaotic", before=_store) as under:
            yield Aftermath(under, _expected(under), _kill_at_random(under))


def _store(under: House) -> None:
    subjects = [str(uuid4()) for _ in range(SUBJECTS)]
    wanted = [(kind.name, subject) for kind in KINDS for subject in subjects]
    random.shuffle(wanted)
    with under.database.engine.begin() as connection:
        catalogue.write(connection, KINDS, backend="memory", host="local")
        for kind, subject in wanted:
            requests.enqueue(connection, kind, {"id": subject}, priority=random.choice([50, 100]))


def _expected(under: House) -> dict[str, str]:
    return dict(map(tuple, under.rows("SELECT id::text, subject FROM worker.jobs ORDER BY priority, seq")))


def _kill_at_random(under: House) -> dict[int, float]:
    killed: dict[int, float] = {}
    end = monotonic() + PATIENCE
    while under.value("SELECT count(*) FROM worker.jobs WHERE state <> ALL (:rest)", rest=list(REST)) and monotonic() < end:
        Event().wait(random.uniform(0.4, 1.2))
        at_work = list(under.holders() - set(killed))
        if at_work and len(killed) < KILLS:
            victim = random.choice(at_work)
            killed[victim] = monotonic()
            os.kill(victim, signal.SIGKILL)
    return killed


def test_nothing_is_lost_and_nothing_is_done_more_often_than_processes_died(aftermath: Aftermath) -> None:
    under, jobs = aftermath.house, list(aftermath.subject_of)
    states = under.rows("SELECT state, count(*) FROM worker.jobs GROUP BY state")
    effects = under.effects(jobs)

    under.tell(
        f"chaos: {len(jobs)} jobs on {SUBJECTS} subjects, {len(aftermath.killed)} kills, takeovers {dict(under.takeovers())}, "
        f"{len(under.lines('refused'))} stale writes refused, effects {effects.total()} for {len(jobs) * len(STEPS)} expected"
    )
    assert len(aftermath.killed) == KILLS
    assert states == [("succeeded", len(jobs))]
    assert under.value("SELECT count(*) FROM worker.steps WHERE status = 'done'") == len(jobs) * len(STEPS)
    assert len(effects) == len(jobs) * len(STEPS)
    assert effects.total() <= len(effects) + under.takeovers().total()


def test_no_two_processes_are_ever_at_work_on_one_subject(aftermath: Aftermath) -> None:
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    began: dict[tuple[int, str], float] = {}
    for line in aftermath.house.lines():
        if line["what"] == "enter":
            began[line["pid"], line["job"]] = line["at"]
        elif line["what"] == "leave":
            spans[line["subject"]].append((began.pop((line["pid"], line["job"])), line["at"]))
    for (pid, job), at in began.items():
        spans[aftermath.subject_of[job]].append((at, aftermath.killed[pid]))

    overlaps = [(one, two) for found in spans.values() for one, two in pairwise(sorted(found)) if two[0] < one[1]]
    assert len(spans) == SUBJECTS
    assert overlaps == []


def test_a_subjects_jobs_run_in_order_of_priority_and_then_of_age(aftermath: Aftermath) -> None:
    wanted: dict[str, list[str]] = defaultdict(list)
    for job, subject in aftermath.subject_of.items():
        wanted[subject].append(job)
    seen: dict[str, dict[str, None]] = defaultdict(dict)
    for line in aftermath.house.lines("enter"):
        seen[line["subject"]].setdefault(line["job"])

    assert {subject: list(jobs) for subject, jobs in seen.items()} == wanted


def test_the_fence_of_a_subject_never_falls(aftermath: Aftermath) -> None:
    fences: dict[str, list[int]] = defaultdict(list)
    for line in aftermath.house.lines("applied"):
        fences[aftermath.subject_of[line["job"]]].append(line["fence"])

    assert [subject for subject, found in fences.items() if found != sorted(found)] == []
    assert all(found[-1] >= len(KINDS) for found in fences.values())
