"""What a list of jobs costs: the same, however many there are."""

from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.conftest import Database
from tests.toys import remember, toy_kind
from worker.store import status

MANY = 8000
MOST = 5
#: So many of each of three kinds and seven states, the chosen ones twice for the view, and all of one subject.
ENOUGH = MOST * (3 * 7 + 2) + MANY // 100


@pytest.fixture
def history(database: Database) -> Database:
    """Jobs at rest; the few that failed are the oldest, and one in a hundred is about the same subject."""
    remember(database, toy_kind(), toy_kind("toy.remove"), toy_kind("toy.rare"))
    with database.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO worker.jobs (kind, subject, queue, args, steps, only_forward, state, finished_at, error) "
                "SELECT CASE WHEN i % 1000 = 0 THEN 'toy.rare' WHEN i % 3 = 0 THEN 'toy.remove' ELSE 'toy.make' END, "
                "'toy:' || CASE WHEN i % 100 = 0 THEN 'often' ELSE i::text END, 'toy', '{}', '{s1,s2}', false, "
                "CASE WHEN i < 20 THEN 'failed' ELSE 'cancelled' END, now(), CASE WHEN i < 20 THEN '{\"code\": \"x\"}'::jsonb END "
                "FROM generate_series(1, :many) AS i"
            ),
            {"many": MANY},
        )
        connection.execute(text("ANALYZE worker.jobs"))
    return database


def cost(connection: Connection) -> tuple[int, int]:
    """Scans of the whole table, and rows fetched by an index, in this transaction."""
    seen = "SELECT seq_scan, idx_tup_fetch FROM pg_stat_xact_all_tables WHERE relid = 'worker.jobs'::regclass"
    scans, rows = connection.execute(text(seen)).one()
    return scans, rows


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"state": "cancelled"},
        {"state": "failed"},
        {"state": "waiting"},
        {"state": "running"},
        {"failed": True},
        {"kind": "toy.rare"},
        {"kind": "toy.rare", "failed": True},
        {"subject": "toy:often"},
        {"subject": "toy:often", "kind": "toy.rare"},
    ],
    ids=str,
)
def test_a_list_looks_at_a_few_jobs_of_many(history: Database, wanted: dict[str, Any]) -> None:
    asked = {"state": None, "failed": False, "kind": None, "subject": None, **wanted}
    with history.engine.connect() as connection:
        before = cost(connection)
        found = status.jobs(connection, **asked, most=MOST)
        scans, rows = (after - old for after, old in zip(cost(connection), before, strict=True))

    assert len(found) <= MOST
    assert scans == 0
    assert rows <= ENOUGH
