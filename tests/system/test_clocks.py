"""Machines whose wall clocks are twenty minutes apart, and jump: only the database's clock and differences count."""

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from tests.conftest import fresh_database
from tests.system.hostile import KINDS
from tests.system.house import PATIENCE, House, house, settings_around, stop
from tests.system.load import Load, prepare
from tests.system.size import full
from tests.system.skewed import VARIABLE
from tests.waiting import until
from worker.store import requests

SUBJECTS = 100 if full() else 15
#: Seconds that each machine's clock is off, and by how many more every other second.
CLOCKS = ("-600,0", "600,600")
SOON = timedelta(seconds=3)


@dataclass
class Scene:
    """One daemon of one process for each clock, over one database."""

    first: House
    load: Load


@pytest.fixture(scope="module")
def scene(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("clocks")
    with fresh_database(postgres) as database, ExitStack() as running:
        for clock in CLOCKS:
            around = {**settings_around(database, folder, processes=1, MOLECULE_WORKER_SLOTS="4"), VARIABLE: clock}
            first = running.enter_context(house(database, folder, around, module="tests.system.skewed", before=prepare))
        yield Scene(first, Load(first))


def test_machines_whose_clocks_are_far_apart_and_jump_share_the_work_as_if_they_were_not(scene: Scene) -> None:
    first, load = scene.first, scene.load
    began = now(first)
    strange = strange_moments(first, began)
    later = store_for_later(load, due := began + SOON)
    workspace, provision = first.create()
    load.store(SUBJECTS)
    assert first.ends(provision) == {provision: "succeeded"}
    assert first.live_faults(workspace) == []
    until(lambda: not load.left(), within=PATIENCE, what="all jobs at rest")
    shares = Counter(line["pid"] for line in first.lines("enter"))

    first.tell(f"clocks {apart(first):.0f} s apart, effects by process {sorted(shares.values())}, {load.summary()}")
    assert apart(first) > 1100
    assert len(shares) == len(CLOCKS)
    assert first.takeovers() == {}
    assert load.effects().total() == load.expected
    early = "SELECT id FROM worker.jobs WHERE id = ANY (CAST(:jobs AS uuid[])) AND started_at < :due"
    assert first.rows(early, jobs=later, due=due) == []
    assert strange_moments(first, began) == strange
    assert load.faults() == []


def test_a_machine_with_a_wrong_clock_that_dies_is_relieved_by_one_with_another(scene: Scene) -> None:
    first, load = scene.first, scene.load
    load.store(SUBJECTS)
    victim = until(first.holders, within=PATIENCE, what="work in progress").pop()
    stop(victim, signal.SIGKILL)
    until(lambda: not load.left(), within=PATIENCE, what="all jobs at rest")

    first.tell(f"clocks: 1 kill, {load.summary()}")
    assert set(first.takeovers()) == {"session"}
    assert load.faults() == []


def store_for_later(load: Load, moment: datetime) -> list[str]:
    with load.house.database.engine.begin() as connection:
        made = {
            requests.enqueue(connection, KINDS[0].name, {"id": subject}, run_at=moment)[0]: subject
            for subject in (f"{n:08d}-0000-4000-8000-000000000000" for n in range(5))
        }
    load.subject_of |= made
    return list(made)


def now(house: House) -> datetime:
    moment: datetime = house.value("SELECT clock_timestamp()")
    return moment


def apart(house: House) -> float:
    """By how many seconds the machines' clocks disagree, by either source, beyond what has passed meanwhile."""
    said = house.lines("clock")
    offsets = [[line[source] - line["at"] for line in said] for source in ("time", "datetime")]
    return float(min(max(found) - min(found) for found in offsets))


def strange_moments(house: House, began: datetime) -> dict[str, int]:
    """By column of our tables and the platform's, the moments that a clock ten minutes wrong would have written."""
    columns = house.rows(
        "SELECT format('%I.%I', table_schema, table_name), quote_ident(column_name) FROM information_schema.columns "
        "JOIN information_schema.tables USING (table_schema, table_name) WHERE table_type = 'BASE TABLE' "
        "AND data_type LIKE 'timestamp%' AND table_schema IN ('worker', 'public')"
    )
    wrong = f"SELECT count(*) FROM {{}} WHERE abs(extract(epoch FROM {{}} - :began)) BETWEEN {10 * 60 - 120} AND {10 * 60 + 120}"
    return {f"{table}.{column}": int(house.value(wrong.format(table, column), began=began)) for table, column in columns}
