"""A Postgres that is restarted, cut, hurried, locked and crowded while jobs run; nobody lends the daemon a hand."""

from pathlib import Path

import pytest

from tests.system import assaults, outages
from tests.system.house import PATIENCE, house, settings_around
from tests.system.load import Load, prepare
from tests.system.size import full
from tests.waiting import until

SUBJECTS = 30 if full() else 5
ROUNDS = 5 if full() else 1
PROCESSES = 3


@pytest.mark.timeout(1800 if full() else 180)
def test_whatever_befalls_postgres_nothing_is_lost_or_doubled_and_every_process_is_back(tmp_path: Path) -> None:
    knob = f"ALTER SYSTEM SET max_connections = {assaults.MOST}"
    with outages.redis(tmp_path / "redis") as redis, outages.postgres(knob) as own:
        knobs = {"REDIS_URL": redis.url.reveal(), "MOLECULE_WORKER_SLOTS": "4", "MOLECULE_WORKER_LEASE_S": "2"}
        around = settings_around(own.database, tmp_path, processes=PROCESSES, **knobs)
        with house(own.database, tmp_path, around, module="tests.system.hostile", before=prepare) as under:
            load, happened = Load(under), []
            for assault in assaults.ALL * ROUNDS:
                load.store(SUBJECTS)
                until(under.holders, within=PATIENCE, what="work in progress")
                happened.append(assault(own, under))
                load.store(SUBJECTS)
                until(lambda: not load.left(), within=PATIENCE, what=f"all jobs at rest after {happened[-1]}")
            until(lambda: len(under.pids() & under.children()) == PROCESSES, within=PATIENCE, what="every process back")
            # Through the receiver as well, whose process suffered the same.
            workspace, job = under.create()
            assert under.ends(job) == {job: "succeeded"}
            assert under.live_faults(workspace) == []

            under.tell(f"hostile postgres: {', '.join(happened)}; {load.summary()}")
            assert load.faults() == []
