"""The same daemon with RabbitMQ as its broker: bells are heard, and a broker that dies and comes back needs nobody's hand."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from celery import Celery

from tests.conftest import Database
from tests.rabbit import Rabbit
from tests.system.house import House, house, settings_around
from tests.waiting import until

#: Seconds between two looks of the daemon's own: longer than this test, so that only bells start a job.
POLL_S = 600.0
#: Seconds until a restarted node is heard of; Celery asks after 2, 6, 12 and 20.
BACK_S = 60.0


@pytest.fixture
def rung(database: Database, tmp_path: Path, rabbit: Rabbit) -> Iterator[House]:
    """A daemon that never looks by itself."""
    more = {"CELERY_BROKER_URL": rabbit.url.reveal(), "MOLECULE_WORKER_POLL_S": str(POLL_S)}
    with house(database, tmp_path, settings_around(database, tmp_path, processes=1, **more)) as built:
        yield built


def rings(house: House) -> float:
    """Provision and delete; seconds until the first step began."""
    began = monotonic()
    workspace, job = house.create()
    until(lambda: house.lines("enter", job), within=20.0, what="begun")
    heard = monotonic() - began
    assert house.ends(job) == {job: "succeeded"}
    delete = house.delete(workspace)
    assert house.ends(delete) == {delete: "succeeded"}
    return heard


def test_bells_are_heard_over_rabbitmq_and_again_after_it_was_killed(
    rung: House, rabbit: Rabbit, capsys: pytest.CaptureFixture[str]
) -> None:
    heard = rings(rung)
    began = len(rung.said())
    rabbit.kill()
    workspace, unrung = rung.create()
    until(lambda: any("broker away" in line for line in rung.said()[began:]), what="the broker's absence noticed")
    rabbit.start()
    with Celery("somebody", broker=rabbit.url.reveal(), set_as_current=False) as app:
        until(lambda: app.control.ping(timeout=0.5), within=BACK_S, what="the worker consumes again")
    assert rung.ends(unrung) == {unrung: "succeeded"}
    again = rings(rung)

    assert any("broker back" in line for line in rung.said()[began:])
    assert rung.takeovers() == {}
    assert rung.live_faults(workspace) == []
    with capsys.disabled():
        rung.tell(f"rabbitmq: a bell was heard after {heard * 1000:.0f} ms, killed, restarted, and after {again * 1000:.0f} ms")
