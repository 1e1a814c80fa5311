"""Many jobs on few subjects while everything around them breaks at random: judged by a ledger outside of the database."""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.system import outages
from tests.system.chaos import LOST_BELLS, Chaos, Size
from tests.system.chaotic import KINDS, STEPS
from tests.system.dying import LINGER
from tests.system.house import House, house, settings_around
from worker.store import kinds as catalogue
from worker.store import requests

SIZE = Size.wanted()
pytestmark = pytest.mark.timeout(SIZE.within_s + 120)


@dataclass(frozen=True)
class Aftermath:
    """What is to be judged."""

    house: House
    subject_of: Mapping[str, str]  #: by job, in the order in which they should run on their subject
    chaos: Chaos


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    """Two machines with a daemon each. All jobs are there at one moment, and at rest when the tests look."""
    folder: Path = tmp_path_factory.mktemp("chaos")
    (folder / LINGER).touch()
    with outages.redis(folder / "redis") as redis, outages.postgres() as postgres:
        more = {"MOLECULE_WORKER_SLOTS": "4", "REDIS_URL": redis.url.reveal()}
        around = settings_around(postgres.database, folder, processes=2, **more)
        module = "tests.system.chaotic"
        with (
            house(postgres.database, folder, around, module=module, before=_prepare) as one,
            house(postgres.database, folder, around, module=module) as two,
        ):
            jobs = _store(one)
            chaos = Chaos([one, two], postgres, redis, SIZE)
            took = chaos.reign()
            _tell(one, chaos, took)
            yield Aftermath(one, jobs, chaos)


def _prepare(under: House) -> None:
    with under.database.engine.begin() as connection:
        connection.execute(text(LOST_BELLS))
        catalogue.write(connection, KINDS, backend="memory", host="local")


def _store(under: House) -> dict[str, str]:
    subjects = [str(uuid4()) for _ in range(SIZE.subjects)]
    wanted = [(kind.name, subject) for kind in KINDS for subject in subjects][: SIZE.jobs]
    random.shuffle(wanted)
    with under.database.engine.begin() as connection:
        for kind, subject in wanted:
            requests.enqueue(connection, kind, {"id": subject}, priority=random.choice([50, 100]))
        stored = connection.execute(text("SELECT id::text, subject FROM worker.jobs ORDER BY priority, seq")).all()
    return dict(map(tuple, stored))


def _tell(under: House, chaos: Chaos, took: float) -> None:
    jobs = [job for (job,) in under.rows("SELECT id::text FROM worker.jobs")]
    takeovers, effects = under.takeovers(), under.effects(jobs)
    under.tell(
        f"chaos over {len(jobs)} jobs on {SIZE.subjects} subjects in {took:.0f} s: {chaos.done['kills']} kills, "
        f"{chaos.done['freezes']} freezes, {chaos.done['restarts']} Postgres restarts, {chaos.done['wipes']} times Redis wiped; "
        f"takeovers {takeovers['session']} by session and {takeovers['lease']} by lease, "
        f"{len(under.lines('refused'))} stale writes refused, {under.value('SELECT count(*) FROM lost_bells')} lost doorbells, "
        f"effects {effects.total()} for {len(jobs) * len(STEPS)} expected, "
        f"{under.value('SELECT count(*) FROM worker.violations')} violations"
    )


def test_nothing_is_lost_and_nothing_is_done_more_often_than_processes_died(aftermath: Aftermath) -> None:
    under, jobs = aftermath.house, list(aftermath.subject_of)
    states = under.rows("SELECT state, count(*) FROM worker.jobs GROUP BY state")
    effects = under.effects(jobs)

    wanted = {"kills": SIZE.kills, "freezes": SIZE.freezes, "restarts": SIZE.restarts, "wipes": SIZE.wipes}
    assert dict(aftermath.chaos.done) == wanted
    assert states == [("succeeded", len(jobs))]
    assert under.value("SELECT count(*) FROM worker.steps WHERE status = 'done'") == len(jobs) * len(STEPS)
    assert len(effects) == len(jobs) * len(STEPS)
    assert effects.total() <= len(effects) + under.takeovers().total()


def test_no_two_processes_are_ever_at_work_on_one_subject(aftermath: Aftermath) -> None:
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    began: dict[tuple[int, str], float] = {}
    cut = aftermath.chaos.cut
    last = max(line["at"] for line in aftermath.house.lines())
    for line in aftermath.house.lines():
        if line["what"] == "enter":
            began[line["pid"], line["job"]] = line["at"]
        elif line["what"] == "leave":
            # A frozen process is in its effect for as long as it does nothing: what it does when it wakes is refused.
            at = began.pop((line["pid"], line["job"]))
            frozen = cut.get(line["pid"], last)
            spans[line["subject"]].append((at, frozen if at <= frozen < line["at"] else line["at"]))
    for (pid, job), at in began.items():
        spans[aftermath.subject_of[job]].append((at, cut.get(pid, at)))

    overlaps = [(one, two) for found in spans.values() for one, two in pairwise(sorted(found)) if two[0] < one[1]]
    assert len(spans) == SIZE.subjects
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
    # By the database's own record: what a frozen process heard before, it writes into its ledger when it wakes.
    query = "SELECT j.subject, s.fence FROM worker.steps s JOIN worker.jobs j ON j.id = s.job_id ORDER BY s.finished_at"
    for subject, fence in aftermath.house.rows(query):
        fences[subject].append(fence)

    assert [subject for subject, found in fences.items() if found != sorted(found)] == []
    assert all(found[-1] >= len(KINDS) for found in fences.values())
