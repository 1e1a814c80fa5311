"""In which order jobs are claimed: fair turns between organisations, priority within, and never what is not due or paused."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.conftest import Database
from tests.toys import ask, remember, state, toy_kind
from worker.engine.walk import Claimed
from worker.store.jobs import Claims, Register

KIND = toy_kind()


@contextmanager
def claimer(database: Database) -> Iterator[Claims]:
    register = Register(database.url, name="t", pid=1, lease_s=30, host="here", knows={KIND.name: KIND.machine.names})
    claims = Claims(database.url, process_id=register.process_id, name="t")
    yield claims
    claims.close()
    register.close()


def wanted(database: Database, org: str, n: int, priority: int = 100) -> list[str]:
    jobs = [ask(database, priority=priority) for _ in range(n)]
    with database.engine.begin() as connection:
        connection.execute(
            text("UPDATE worker.jobs SET org = :org WHERE id = ANY (CAST(:jobs AS uuid[]))"), {"org": org, "jobs": jobs}
        )
    return jobs


def orgs(claimed: Sequence[Claimed]) -> Counter[str]:
    return Counter(job.org for job in claimed)


def test_one_organisations_backlog_does_not_starve_the_others(database: Database) -> None:
    remember(database, KIND)
    wanted(database, "large", 50)
    wanted(database, "small", 2)
    wanted(database, "tiny", 1)
    with claimer(database) as claims:
        assert orgs(claims.claim(["toy"], 6)) == {"large": 3, "small": 2, "tiny": 1}


def test_single_claims_go_round(database: Database) -> None:
    remember(database, KIND)
    for org in ("a", "b", "c"):
        wanted(database, org, 5)
    with claimer(database) as claims:
        turns = [claims.claim(["toy"], 1)[0].org for _ in range(6)]

    assert turns == ["a", "b", "c", "a", "b", "c"]


def test_an_organisation_whose_row_somebody_holds_does_not_starve_the_others(database: Database) -> None:
    remember(database, KIND)
    (held,), (free,) = wanted(database, "a", 1), wanted(database, "b", 1)
    with claimer(database) as claims, database.engine.begin() as caller:
        caller.execute(text("SELECT FROM worker.jobs WHERE id = :held FOR UPDATE"), {"held": held})
        assert [job.id for job in claims.claim(["toy"], 1)] == [free]


def test_within_an_organisation_the_more_urgent_job_goes_first(database: Database) -> None:
    remember(database, KIND)
    (late,), (urgent,), (usual,) = wanted(database, "a", 1, 900), wanted(database, "a", 1, 1), wanted(database, "a", 1)
    with claimer(database) as claims:
        assert [job.id for job in claims.claim(["toy"], 3)] == [urgent, usual, late]


def test_an_urgent_job_of_one_organisation_takes_nobody_elses_turn(database: Database) -> None:
    remember(database, KIND)
    wanted(database, "a", 5, 1)
    wanted(database, "b", 1, 1000)
    with claimer(database) as claims:
        assert orgs(claims.claim(["toy"], 2)) == {"a": 1, "b": 1}


def test_a_job_of_tomorrow_is_not_claimed_and_one_whose_time_has_come_is(database: Database) -> None:
    remember(database, KIND)
    job = ask(database, run_at="2999-01-01T00:00:00Z")
    with claimer(database) as claims:
        assert claims.claim(["toy"], 5) == []
        with database.engine.begin() as connection:
            connection.execute(text("UPDATE worker.jobs SET run_at = now()"))
        assert [claimed.id for claimed in claims.claim(["toy"], 5)] == [job]


def test_jobs_behind_busy_subjects_are_looked_past_in_one_claim(database: Database) -> None:
    other = toy_kind("toy.other")
    remember(database, KIND, other)
    subjects = [str(uuid4()) for _ in range(30)]
    for subject in subjects:
        ask(database, subject=subject)
    with claimer(database) as claims:
        assert len(claims.claim(["toy"], 30)) == 30
        for subject in subjects:
            ask(database, "toy.other", subject)
        free = ask(database, priority=1000)
        assert [job.id for job in claims.claim(["toy"], 1)] == [free]


@pytest.mark.parametrize(("scope", "what"), [("kind", "toy.make"), ("org", "a"), ("all", "")])
def test_what_is_paused_is_not_claimed_until_it_is_resumed(database: Database, scope: str, what: str) -> None:
    remember(database, KIND)
    jobs = wanted(database, "a", 3)
    with claimer(database) as claims, database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as operator:
        call = {"scope": scope, "what": what}
        assert operator.execute(text("SELECT worker.pause(:scope, :what, 'calm', 'me')"), call).scalar_one() is True
        assert operator.execute(text("SELECT worker.pause(:scope, :what, 'calm', 'me')"), call).scalar_one() is False
        assert claims.claim(["toy"], 5) == []
        assert claims.claim(["toy"], 5, [jobs[0]]) == []
        assert operator.execute(text("SELECT worker.resume(:scope, :what, 'me')"), call).scalar_one() == 3
        assert {job.id for job in claims.claim(["toy"], 5)} == set(jobs)
        assert operator.execute(text("SELECT worker.resume(:scope, :what, 'me')"), call).scalar_one() is None


def test_a_pause_of_one_kind_leaves_the_others(database: Database) -> None:
    other = toy_kind("toy.other")
    remember(database, KIND, other)
    ask(database)
    free = ask(database, "toy.other")
    with claimer(database) as claims, database.engine.begin() as connection:
        connection.execute(text("SELECT worker.pause('kind', 'toy.make')"))
        connection.commit()
        assert [job.id for job in claims.claim(["toy"], 1)] == [free]


def test_a_drained_host_claims_nothing_and_its_beat_says_so(database: Database) -> None:
    remember(database, KIND)
    job = ask(database)
    register = Register(database.url, name="t", pid=1, lease_s=30, host="here")
    claims = Claims(database.url, process_id=register.process_id, name="t")
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as operator:
        operator.execute(text("SELECT worker.pause('host', 'here')"))
        assert register.beat().draining
        assert claims.claim(["toy"], 1) == []
        operator.execute(text("SELECT worker.resume('host', 'here')"))
        assert not register.beat().draining
        assert [claimed.id for claimed in claims.claim(["toy"], 1)] == [job]
        assert register.beat().running == {job}
    claims.close()
    register.close()


def test_a_job_of_a_newer_release_is_left_to_who_can_do_it(database: Database) -> None:
    remember(database, KIND)
    newer = toy_kind(steps=4)
    old = Register(database.url, name="old", pid=1, lease_s=30, knows={KIND.name: KIND.machine.names})
    remember(database, newer)
    job = ask(database)
    new = Register(database.url, name="new", pid=2, lease_s=30, knows={newer.name: newer.machine.names})
    claims = [Claims(database.url, process_id=register.process_id, name="c") for register in (old, new)]

    assert claims[0].claim(["toy"], 5) == []
    assert claims[0].claim(["toy"], 5, [job]) == []
    assert [claimed.id for claimed in claims[1].claim(["toy"], 5)] == [job]
    for closing in (claims[0].close, claims[1].close, old.close, new.close):
        closing()


def test_a_job_that_waited_for_a_release_goes_on_when_one_comes_that_knows_its_steps(database: Database) -> None:
    newer = toy_kind(steps=4)
    remember(database, newer)
    job = ask(database)
    error = '{"code": "unknown_step"}'
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.jobs SET state = 'blocked', error = :e"), {"e": error})
    Register(database.url, name="old", pid=1, lease_s=30, knows={KIND.name: KIND.machine.names}).close()
    assert state(database, job) == "blocked"
    Register(database.url, name="new", pid=2, lease_s=30, knows={newer.name: newer.machine.names}).close()
    assert state(database, job) == "waiting"


def test_who_is_able_is_asked_once_a_claim_and_not_for_each_job(database: Database) -> None:
    remember(database, KIND)
    newer = toy_kind(steps=4)
    old = Register(database.url, name="old", pid=1, lease_s=30, knows={KIND.name: KIND.machine.names})
    remember(database, newer)
    new = Register(database.url, name="new", pid=2, lease_s=30, knows={newer.name: newer.machine.names})
    reads = text(
        "SELECT coalesce(seq_scan, 0) + coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables WHERE relid = 'worker.processes'::regclass"
    )
    seen = []
    for backlog in (1, 50):
        jobs = wanted(database, "a", backlog)
        with database.engine.connect() as connection:
            for ids in (None, jobs):
                before = connection.execute(reads).scalar_one()
                claim = text("SELECT id FROM worker.claim(:process, '{toy}', 100, CAST(:ids AS uuid[]))")
                assert connection.execute(claim, {"process": old.process_id, "ids": ids}).all() == []
                seen.append(connection.execute(reads).scalar_one() - before)
    assert seen[:2] == seen[2:]
    for closing in (old.close, new.close):
        closing()


@pytest.mark.parametrize(
    ("able", "alive", "taken"), [("'{}'", True, False), ("'{}'", False, True), ("NULL", True, True), ("NULL", False, True)]
)
def test_a_definition_of_the_first_release_is_done_by_who_never_said_and_by_others_only_where_nobody_else_is(
    database: Database, able: str, *, alive: bool, taken: bool
) -> None:
    remember(database, KIND)
    ask(database)
    first, me = (Register(database.url, name=name, pid=1, lease_s=30) for name in ("first", "me"))
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.definitions SET first = true"))
        connection.execute(text(f"UPDATE worker.processes SET able = {able} WHERE name = 'me'"))
        connection.execute(text("UPDATE worker.processes SET able = NULL WHERE name = 'first'"))
        if not alive:
            connection.execute(text("UPDATE worker.processes SET lease_until = now() WHERE name = 'first'"))
    claims = Claims(database.url, process_id=me.process_id, name="me")
    assert bool(claims.claim(["toy"], 1)) is taken
    for closing in (claims.close, me.close, first.close):
        closing()
