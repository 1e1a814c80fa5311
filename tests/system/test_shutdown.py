"""How the daemon leaves: in order when it is asked once, at once when it is asked twice."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Database
from tests.system.house import House, house, settings_around
from tests.waiting import until

SPOT = "forward.storage.after"


@pytest.fixture
def small(database: Database, tmp_path: Path) -> Iterator[House]:
    """A daemon of one worker process."""
    with house(database, tmp_path, settings_around(database, tmp_path, processes=1)) as built:
        yield built


def test_asked_once_the_daemon_commits_the_running_step_gives_the_job_back_and_leaves(small: House) -> None:
    workspace, job = small.create((SPOT, "hold"))
    until(lambda: small.granted(job, SPOT, "hold"))
    small.signal(signal.SIGTERM)
    late, unclaimed = small.create()
    until(lambda: small.lines("told to stop", job), what="the step knows that it should come to an end")
    small.release(job, SPOT)
    assert small.ended() == 0

    steps = dict(small.rows("SELECT name, status FROM worker.steps WHERE job_id = :j", j=job))
    assert steps == {"admit": "done", "image": "done", "inputs": "done", "storage": "done"}
    assert small.rows("SELECT state, step FROM worker.job_status WHERE id = :j", j=job) == [("waiting", "container")]
    assert small.value("SELECT state FROM worker.jobs WHERE id = :j", j=unclaimed) == "queued"
    assert small.value("SELECT count(*) FROM worker.processes WHERE lease_until > clock_timestamp()") == 0

    small.start()
    assert set(small.ends(job, unclaimed).values()) == {"succeeded"}
    assert small.takeovers() == {}
    assert set(small.effects([job]).values()) == {1}
    assert small.live_faults(workspace) == small.live_faults(late) == []
    small.tell(f"SIGTERM: the running step was committed, takeovers {dict(small.takeovers())}, no effect ran twice")


def test_asked_twice_the_daemon_leaves_now_and_the_next_one_takes_over(small: House) -> None:
    workspace, job = small.create((SPOT, "hold"))
    until(lambda: small.granted(job, SPOT, "hold"))
    small.signal(signal.SIGTERM)
    until(lambda: small.lines("told to stop", job), what="the step knows that it should come to an end")
    small.signal(signal.SIGTERM)
    assert small.ended(within=5.0) == 1
    assert small.value("SELECT state FROM worker.jobs WHERE id = :j", j=job) == "running"

    small.start()
    assert small.ends(job) == {job: "succeeded"}
    assert small.takeovers(job).total() == 1
    assert small.live_faults(workspace) == []
    small.tell(f"SIGTERM twice: takeovers {dict(small.takeovers(job))}")
