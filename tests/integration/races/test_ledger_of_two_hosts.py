from uuid import uuid4

from sqlalchemy import text

from tasks.catalogue import KINDS
from tests.conftest import Database
from worker.domain import Thing, ThingKind
from worker.store import kinds as catalogue
from worker.store import ledger, requests


def test_a_listing_of_one_host_closes_no_row_of_another(database: Database) -> None:
    subject = f"workspace:{uuid4()}"
    with database.engine.begin() as connection:
        thing = Thing(ThingKind.CONTAINER, "ws-1", None)
        ledger.intend(connection, [thing], backend="docker", host="a", subject=subject, job_id=str(uuid4()))
        ledger.close(connection, [], backend="docker", host="b", subject=subject)
        states = connection.execute(text("SELECT state FROM worker.ledger")).scalars().all()

    assert states == ["intended"]


def test_a_workspace_that_nobody_placed_is_deleted_where_it_is(database: Database) -> None:
    ident = str(uuid4())
    with database.engine.begin() as connection:
        catalogue.write(connection, KINDS, backend="docker", host="b")
        thing = Thing(ThingKind.CONTAINER, "ws-1", None)
        ledger.intend(connection, [thing], backend="docker", host="a", subject=f"workspace:{ident}", job_id=str(uuid4()))
        requests.enqueue(connection, "workspace.delete", {"workspace_id": ident})
        queue = connection.execute(text("SELECT queue FROM worker.jobs")).scalar_one()

    assert queue == "docker.a"
