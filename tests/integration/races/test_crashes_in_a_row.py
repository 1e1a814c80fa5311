from tests.conftest import Database
from tests.toys import ask, remember, state, toy_kind
from worker.store.jobs import MAX_CRASHES, Applier, Claims, Register

KIND = toy_kind()
_EARLY = {"direction": "forward", "position": 0, "name": "s1", "attempt": 0, "took_ms": 1, "status": "waiting", "what": "a kettle"}
_AGAIN = {"next": "wait", "after_ms": 0, "to_direction": "forward", "to_position": 0, "to_attempt": 0}


def test_only_crashes_without_a_decision_between_them_block_a_job(database: Database) -> None:
    remember(database, KIND)
    job = ask(database)
    applier = Applier(database.url, name="test")
    for _ in range(MAX_CRASHES):
        register = Register(database.url, name="test", pid=1, lease_s=60)
        claims = Claims(database.url, process_id=register.process_id, name="test")
        [claimed] = claims.claim(["toy"], 1)
        applier.send([{"job": job, "fence": claimed.fence, **_EARLY, **_AGAIN}])
        claims.claim(["toy"], 1)
        claims.close()
        register.close()
        reaper = Register(database.url, name="test", pid=1, lease_s=60)
        assert sum(reaper.reap().values()) == 1
        reaper.close()
        with database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE worker.jobs SET run_at = now()")
    applier.close()

    assert state(database, job) == "waiting"
