"""Messages are doorbells: heard at once, harmless when they are wrong, and not needed."""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from uuid import uuid4

import pytest
from celery import Celery

from config import settings as environment
from tests.conftest import Database
from tests.system.house import RUNTIME, House, house, settings_around
from tests.waiting import until
from worker.domain import Placement, Secret
from worker.new_workspace import NewWorkspace
from worker.store import workspaces

#: Seconds between two looks of the daemon's own: a job that starts well before was rung for.
POLL_S = 30.0


@pytest.fixture
def rung(database: Database, tmp_path: Path, redis_url: Secret) -> Iterator[House]:
    """A daemon that hardly ever looks by itself."""
    around = settings_around(database, tmp_path, processes=1, REDIS_URL=redis_url.reveal(), MOLECULE_WORKER_POLL_S=str(POLL_S))
    with house(database, tmp_path, around) as built:
        yield built


@pytest.fixture
def producer(redis_url: Secret) -> Iterator[Celery]:
    """Somebody else's Celery: it knows the broker's address, its prefix, and the names of the tasks."""
    broker = environment.load({"REDIS_URL": redis_url.reveal()}).broker_url
    assert broker is not None
    app = Celery("somebody", broker=broker.get_secret_value(), set_as_current=False)
    app.conf.update(
        broker_transport_options={"global_keyprefix": "molecule-worker:"}, task_default_queue="jobs", task_ignore_result=True
    )
    yield app
    app.close()


def test_a_job_that_is_rung_for_starts_at_once_and_never_waits_for_the_next_look(rung: House) -> None:
    began = monotonic()
    workspace, job = rung.create()
    until(lambda: rung.lines("enter", job), within=POLL_S / 6, what="begun")
    heard = monotonic() - began
    rung.ends(job, within=POLL_S / 2)
    rung.ends(rung.delete(workspace), within=POLL_S / 2)

    rung.tell(
        f"doorbell: begun after {heard * 1000:.0f} ms where the next look was {POLL_S:g} s away; all over after {monotonic() - began:.1f} s"
    )


def test_a_named_task_of_another_program_stores_a_job_and_runs_it(rung: House, producer: Celery) -> None:
    workspace = _unasked(rung)
    producer.send_task("workspace.provision", [workspace])
    job = until(lambda: rung.rows("SELECT id::text FROM worker.jobs WHERE requested_by = 'celery'"), within=POLL_S / 3)[0][0]

    assert rung.ends(job, within=POLL_S / 2) == {job: "succeeded"}
    assert rung.live_faults(workspace) == []


def test_wrong_and_doubled_messages_do_nothing(rung: House, producer: Celery) -> None:
    pids = rung.pids()
    workspace, job = rung.create(("forward.storage.before", "hold"))
    until(lambda: rung.granted(job, "forward.storage.before", "hold"))
    for _ in range(20):
        producer.send_task("workspace.provision", kwargs={"job": job})
        producer.send_task("workspace.provision", [workspace])
    for wrong in ([], ["no id"], [None], [{"workspace_id": workspace}], [workspace, "too", "many"]):
        producer.send_task("workspace.provision", wrong)
    for kwargs in ({"job": str(uuid4())}, {"job": "no id"}, {"unheard": "of"}):
        producer.send_task("workspace.provision", kwargs=kwargs)
        producer.send_task("workspace.delete", kwargs=kwargs)
    producer.send_task("workspace.explode", [workspace])
    stranger = str(uuid4())
    producer.send_task("workspace.provision", [stranger])
    failed = until(
        lambda: rung.rows("SELECT id::text FROM worker.jobs WHERE subject = :s", s=f"workspace:{stranger}"), within=POLL_S / 3
    )
    rung.release(job, "forward.storage.before")

    assert rung.ends(job, failed[0][0], within=POLL_S / 2) == {job: "succeeded", failed[0][0]: "failed"}
    assert rung.live_faults(workspace) == []
    assert rung.value("SELECT count(*) FROM worker.jobs") == 2
    assert set(rung.effects([job]).values()) == {1}
    assert rung.pids() == pids


def _unasked(house: House) -> str:
    """A workspace that nobody asked to provision yet."""
    own = house.settings
    with house.database.engine.begin() as connection:
        return workspaces.create(
            connection, NewWorkspace("rung", RUNTIME, 2), Placement("", own.backend, own.docker_host), [RUNTIME]
        )
