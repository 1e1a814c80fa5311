"""A network that parts a process from its database by halves: its lease but not its work, its work but not its lease."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pytest

from tests.conftest import fresh_database
from tests.proxy import CLAIMS, JOURNAL, LEASE, POOL, Proxy, between
from tests.system.dying import LINGER
from tests.system.hostile import ANSWER_S, KINDS
from tests.system.house import PATIENCE, House, house, lives, settings_around
from tests.system.load import Load, prepare
from tests.system.size import full
from tests.waiting import until

SUBJECTS = 100 if full() else 6
SLOTS = 4
LEASE_S = 2.0
HELD = "forward.begin.after"


@dataclass
class Pair:
    """Two machines with one process each over one database; the first is behind a proxy."""

    parted: House
    other: House
    proxy: Proxy
    load: Load

    def victim(self) -> int:
        """The parted machine's process."""
        return until(lambda: next(iter(self.parted.pids() & self.parted.children()), 0), within=PATIENCE, what="a process there")

    def hold(self) -> tuple[int, list[str]]:
        """More jobs than one process has slots for, held behind their first effect: the victim, and those that it holds."""
        pid = self.victim()
        jobs = self.load.store(SLOTS + 2, kinds=KINDS[:1], hold=HELD)
        until(lambda: all(self.parted.granted(job, HELD, "hold") for job in jobs), what="all held")
        mine = [job for job in jobs if self.parted.holder(job) == pid]
        for job in set(jobs) - set(mine):
            self.parted.release(job, HELD)
        return pid, mine

    def gone_on(self, pid: int, jobs: list[str]) -> None:
        """Wait until the other machine has begun what the victim held."""

        def elsewhere() -> set[str]:
            return {line["job"] for line in self.parted.lines("enter") if line["pid"] != pid}

        until(lambda: set(jobs) <= elsewhere(), within=PATIENCE, what="another process goes on")

    def lease_over(self, pid: int) -> bool:
        """Whether the database says so."""
        said = "SELECT max(lease_until) < clock_timestamp() FROM worker.processes WHERE pid = :pid"
        return bool(self.parted.value(said, pid=pid))

    def heal(self) -> None:
        """Mend the network, and see a fresh process there and every job at rest."""
        self.proxy.heal()
        self.victim()
        until(lambda: not self.load.left(), within=PATIENCE, what="all jobs at rest")


@pytest.fixture(scope="module")
def pair(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder: Path = tmp_path_factory.mktemp("partition")
    with fresh_database(postgres) as database, between(database) as (proxy, url):
        knobs = {"MOLECULE_WORKER_SLOTS": str(SLOTS), "MOLECULE_WORKER_LEASE_S": str(LEASE_S)}
        behind, around = (settings_around(database, folder, processes=1, **knobs) for _ in range(2))
        behind["DATABASE_URL"] = url.reveal()
        module = "tests.system.hostile"
        with (
            house(database, folder, behind, module=module, before=prepare) as parted,
            house(database, folder, around, module=module) as other,
        ):
            yield Pair(parted, other, proxy, Load(parted))


def frozen(proxy: Proxy) -> None:
    proxy.freeze(LEASE)


def deaf(proxy: Proxy) -> None:
    proxy.freeze(LEASE, to_server=False)


def cut_off(proxy: Proxy) -> None:
    proxy.refuse(LEASE)
    proxy.cut(LEASE)


@pytest.mark.parametrize("part", [frozen, deaf, cut_off] if full() else [deaf, cut_off])
def test_a_process_whose_lease_alone_is_parted_begins_nothing_and_is_refused(pair: Pair, part: Callable[[Proxy], None]) -> None:
    (pair.parted.folder / LINGER).write_text("20")
    pid, mine = pair.hold()
    refused, takeovers = len(pair.parted.lines("refused")), pair.parted.takeovers()
    at = monotonic()
    part(pair.proxy)
    pair.gone_on(pid, mine)
    # It lives on, where a real one would leave at once: so nothing but the fence refuses what it writes now, and nothing but
    # the end of its lease what it claims.
    assert lives(pid)
    for job in mine:
        pair.parted.release(job, HELD)
    until(lambda: len(pair.parted.lines("refused")) >= refused + len(mine), what="late decisions refused")
    until(lambda: pair.lease_over(pid), what="its lease over")
    later = pair.load.store(SUBJECTS)
    until(lambda: not pair.load.left(), within=PATIENCE, what="all jobs at rest")
    (pair.parted.folder / LINGER).unlink()
    until(lambda: not lives(pid), within=PATIENCE, what="it left while it was parted still")
    pair.heal()

    late = [line for line in pair.parted.lines("enter") if line["pid"] == pid and line["at"] > at + LEASE_S]
    pair.parted.tell(f"lease {part.__name__}: {pair.parted.takeovers() - takeovers} taken over, {pair.load.summary()}")
    assert late == []
    assert [job for job in later if pair.parted.takeovers(job)] == []
    assert {line["pid"] for line in pair.parted.lines("refused")[refused:]} == {pid}
    assert (pair.parted.takeovers() - takeovers).total() >= len(mine)
    assert pair.load.faults() == []


def test_a_process_whose_work_alone_is_frozen_leaves_it_to_another(pair: Pair) -> None:
    pid, mine = pair.hold()
    takeovers = pair.parted.takeovers()
    pair.proxy.freeze(CLAIMS, JOURNAL, POOL)
    for job in mine:
        pair.parted.release(job, HELD)
    until(lambda: not lives(pid), within=PATIENCE, what=f"it left, {ANSWER_S} s after the first unanswered statement")
    pair.gone_on(pid, mine)
    pair.heal()

    pair.parted.tell(f"work frozen: {pair.parted.takeovers() - takeovers} taken over, {pair.load.summary()}")
    assert (pair.parted.takeovers() - takeovers).total() >= len(mine)
    assert pair.load.faults() == []


def test_an_idle_process_whose_claims_are_frozen_leaves(pair: Pair) -> None:
    pid = pair.victim()
    pair.proxy.freeze(CLAIMS)
    pair.load.store(SUBJECTS)
    until(lambda: not lives(pid), within=PATIENCE, what=f"it left, {ANSWER_S} s after the first unanswered claim")
    pair.heal()

    pair.parted.tell(f"claims frozen: {pair.load.summary()}")
    assert pair.load.faults() == []


def test_work_that_is_cut_and_may_connect_again_goes_on_where_it_was(pair: Pair) -> None:
    pid, mine = pair.hold()
    takeovers = pair.parted.takeovers()
    cut = pair.proxy.cut(JOURNAL, POOL)
    for job in mine:
        pair.parted.release(job, HELD)
    until(lambda: not pair.load.left(), within=PATIENCE, what="all jobs at rest")

    pair.parted.tell(f"work cut: {cut} connections, {pair.load.summary()}")
    assert cut
    assert lives(pid)
    assert pair.parted.takeovers() == takeovers
    assert pair.load.faults() == []


def test_a_network_that_is_slow_costs_time_and_nothing_else(pair: Pair) -> None:
    pid, takeovers = pair.victim(), pair.parted.takeovers()
    pair.proxy.delay_s = 0.05
    pair.load.store(SUBJECTS)
    until(lambda: not pair.load.left(), within=PATIENCE, what="all jobs at rest")
    pair.heal()

    pair.parted.tell(f"everything {0.05} s late each way: {pair.load.summary()}")
    assert lives(pid)
    assert pair.parted.takeovers() == takeovers
    assert pair.load.faults() == []
