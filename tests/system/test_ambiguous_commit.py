"""The database executes a statement, and nobody hears of it: a proxy loses the reply, on every path that writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Database
from tests.proxy import CLAIMS, JOURNAL, LEASE, POOL, Loss, Proxy, between
from tests.system.house import PATIENCE, House, house, settings_around
from tests.system.load import Load, prepare
from tests.system.size import full
from tests.waiting import until

SUBJECTS = 50 if full() else 5
TIMES = 20 if full() else 3
#: What is said to the server, by whom, and whether its loss leaves a process in doubt of what it holds.
PATHS = {
    "checkpoint": (b"worker.apply(", JOURNAL, False),
    "checkpoint within a transaction": (b"worker.apply(", POOL, False),
    "commit of rows and checkpoint": (b"COMMIT\x00", POOL, False),
    "finish": (b'"next": "rest"', JOURNAL, False),
    "wait": (b'"next": "wait"', JOURNAL, False),
    "claim": (b"worker.claim(", CLAIMS, True),
    "beat": (b"worker.beat(", LEASE, True),
}


@dataclass
class Scene:
    """A daemon whose every word to the database goes through a proxy."""

    house: House
    proxy: Proxy
    load: Load


@pytest.fixture
def scene(database: Database, tmp_path: Path) -> Iterator[Scene]:
    with between(database) as (proxy, url):
        around = {**settings_around(database, tmp_path), "DATABASE_URL": url.reveal()}
        with house(database, tmp_path, around, module="tests.system.hostile", before=prepare) as under:
            yield Scene(under, proxy, Load(under))


def lose_and_end(scene: Scene, path: str) -> Loss:
    """Lose replies of one path under load, and see the load end."""
    marker, role, doubtful = PATHS[path]
    loss = scene.proxy.lose(marker, role, TIMES - doubtful)  # one less where it costs a process each time

    def all_lost() -> bool:
        if not scene.load.left():
            scene.load.store(SUBJECTS)
        return loss.all_happened.is_set()

    until(all_lost, within=PATIENCE, what=f"replies lost: {path}")
    until(lambda: not scene.load.left(), within=PATIENCE, what=f"all jobs at rest after lost replies: {path}")
    return loss


@pytest.mark.timeout(1800 if full() else 180)
def test_a_statement_whose_reply_was_lost_is_neither_lost_nor_done_twice(scene: Scene) -> None:
    lost: dict[str, int] = {}
    in_doubt = 0
    for path, (_, _, doubtful) in PATHS.items():
        before = len(scene.house.lines("left"))
        lost[path] = lose_and_end(scene, path).happened
        left = len(scene.house.lines("left")) - before
        # Who loses two replies in a row to one decision leaves, too: in many losses that may happen, in a few it must not.
        enough = left >= lost[path] if doubtful else left <= lost[path] // 10
        assert enough, f"{left} processes left for {lost[path]} lost replies: {path}"
        in_doubt += left

    scene.house.tell(f"ambiguous commit: replies lost {lost}, {in_doubt} processes left in doubt, {scene.load.summary()}")
    said = scene.house.value("SELECT count(*) FROM worker.processes WHERE in_doubt")
    assert said >= lost["claim"], f"{said} processes said that they left in doubt, so that no step is to blame"
    assert scene.load.faults() == []
