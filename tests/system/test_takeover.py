"""What becomes of a job whose process is killed, frozen, or wakes up too late."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from tests.conftest import Database
from tests.system.dying import LINGER
from tests.system.house import House, house, lives, settings_around, stop
from tests.waiting import until

#: Seconds that a job may stand still after a kill and after a freeze, and as much again for a busy machine.
KILLED_S, FROZEN_S = 2 * 1.0, 2 * 5.0
SPOT, NEXT = "forward.storage.after", "forward.container.before"
STEPS = "SELECT * FROM worker.steps WHERE job_id = :j ORDER BY position"


@pytest.fixture
def pair(database: Database, tmp_path: Path) -> Iterator[tuple[House, House]]:
    """Two machines, each with a daemon of one process, over one database and one world; the ledger is common, too."""
    around = settings_around(database, tmp_path, processes=1)
    with house(database, tmp_path, around) as first, house(database, tmp_path, around) as second:
        yield first, second


def held(house: House, *later: str) -> tuple[str, str, int]:
    """A provision in the middle of a step: its workspace, its job, the process that holds it. `later` it is held again."""
    workspace, job = house.create(*[(spot, "hold") for spot in (SPOT, *later)])
    until(lambda: house.granted(job, SPOT, "hold"), what="held")
    return workspace, job, house.holder(job)


def entered_by_another(house: House, job: str, pid: int) -> Callable[[], bool]:
    """Whether the step that was held has begun in another process."""
    return lambda: any(line["pid"] != pid and line["step"] == "storage" for line in house.lines("enter", job))


def fence(house: House, job: str) -> int:
    return int(house.value("SELECT s.fence FROM worker.subjects s JOIN worker.jobs j ON j.subject = s.key WHERE j.id = :j", j=job))


def ends_online(house: House, workspace: str, job: str) -> None:
    assert house.ends(job) == {job: "succeeded"}
    assert house.live_faults(workspace) == []


def test_a_killed_process_loses_its_job_within_a_second(pair: tuple[House, House]) -> None:
    workspace, job, pid = held(pair[0])
    before = fence(pair[0], job)
    began = monotonic()
    stop(pid)
    until(entered_by_another(pair[0], job, pid), within=KILLED_S, what="another process goes on")

    pair[0].tell(f"kill -9 of the holder: gone on after {monotonic() - began:.2f} s, takeovers {dict(pair[0].takeovers(job))}")
    assert pair[0].takeovers(job) == {"session": 1}
    assert fence(pair[0], job) > before
    ends_online(pair[0], workspace, job)


def test_a_frozen_machine_loses_its_job_within_seconds_and_writes_nothing_when_it_wakes(
    pair: tuple[House, House], tmp_path: Path
) -> None:
    (tmp_path / LINGER).touch()
    workspace, job, pid = held(pair[0], NEXT)
    frozen = next(each for each in pair if pid in each.children())
    before = fence(frozen, job)
    began = monotonic()
    # The parent first, because it would replace a process that alone is frozen: here the whole machine stands still.
    frozen.signal(signal.SIGSTOP)
    stop(pid, signal.SIGSTOP)
    until(entered_by_another(frozen, job, pid), within=FROZEN_S, what="another process goes on")
    took = monotonic() - began
    # The other process is in the midst of the job when the zombie wakes, so that nothing but the fence can refuse it.
    until(lambda: frozen.granted(job, NEXT, "hold"), what="the other process in the next step")
    written = frozen.rows(STEPS, j=job)
    frozen.release(job, SPOT)
    stop(pid, signal.SIGCONT)
    until(lambda: [line for line in frozen.lines("refused", job) if line["pid"] == pid], what="the late decision refused")
    until(lambda: not lives(pid) or any(line["pid"] == pid for line in frozen.lines("left")), what="the zombie left")
    assert frozen.rows(STEPS, j=job) == written
    frozen.release(job, NEXT)
    frozen.signal(signal.SIGCONT)
    ends_online(frozen, workspace, job)

    refused = frozen.lines("refused", job)
    applied = [line["fence"] for line in frozen.lines("applied", job)]
    frozen.tell(
        f"SIGSTOP of the holder: gone on after {took:.2f} s, takeovers {dict(frozen.takeovers(job))}, "
        f"{len(refused)} late write refused, its effect ran twice"
    )
    assert frozen.takeovers(job) == {"lease": 1}
    assert [line["fence"] for line in refused] == [before]
    assert applied == sorted(applied)
    assert applied[-1] > before
    assert {step: count for (_, _, step), count in frozen.effects([job]).items() if count > 1} == {"storage": 2}
    until(lambda: len(frozen.pids()) == 2 and pid not in frozen.pids(), within=20, what="the zombie replaced")


def test_a_killed_parent_takes_its_processes_along_and_another_daemon_goes_on(pair: tuple[House, House]) -> None:
    workspace, job, pid = held(pair[0])
    orphaned, other = pair if pid in pair[0].children() else pair[::-1]
    children = orphaned.children()
    orphaned.signal(signal.SIGKILL)
    assert orphaned.ended() == -signal.SIGKILL
    other.release(job, SPOT)
    until(lambda: not any(lives(child) for child in children), within=20, what="the orphans left")

    other.tell(f"kill -9 of the parent: its {len(children)} processes left, takeovers {dict(other.takeovers())}")
    ends_online(other, workspace, job)
    assert other.takeovers() == {}
    assert set(other.effects([job]).values()) == {1}
