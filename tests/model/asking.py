"""Every request that anybody can make, put to the real tables and to the model alike."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import text

from tests.model.bench import KINDS, LEASE_S, ORGS, SUBJECTS, Bench, Member, answer_of, decided, ends, results, some
from tests.model.held import comparable, heard, held
from tests.model.rows import Job
from tests.model.rows_of import differences
from tests.model.rules import may_move
from tests.model.store import Store
from tests.waiting import until
from worker.engine.drive import Record
from worker.engine.machine import Done, Result
from worker.engine.walk import Claimed
from worker.store import requests
from worker.store.jobs import NAMESPACE


class Rows(RuleBasedStateMachine):
    """One example: an empty installation, two processes, and whatever is asked of it."""

    def __init__(self, bench: Bench, store: type[Store]) -> None:
        super().__init__()
        database = bench.database
        self.database = database
        self.store = store(KINDS)
        self.store.placements.update(ORGS)
        self.members: list[Member] = []
        self.claims: list[Claimed] = []
        self.states: dict[str, str] = {}
        self.applier, self.eye, self.did = bench.applier, bench.eye, bench.did

    @initialize(wanted=st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from(SUBJECTS)), min_size=3, max_size=6))
    def begin(self, wanted: list[tuple[str, str]]) -> None:
        self.sql(
            *[
                f"DELETE FROM worker.{table}"
                for table in ("jobs", "steps", "subjects", "children", "aliases", "pauses", "processes")
            ]
        )
        self.enter("here")
        for kind, subject in wanted:
            self.enqueue(kind, subject, False, None, 100, 0)

    def teardown(self) -> None:
        for member in self.members:
            member.close()

    # What people ask for.

    @rule(
        kind=st.sampled_from(sorted(KINDS)),
        subject=st.sampled_from(SUBJECTS),
        deep=st.booleans(),
        key=st.sampled_from([None, None, "k1", "k2"]),
        priority=st.sampled_from([50, 100]),
        later=st.sampled_from([0, 0, 0, 2]),
    )
    def enqueue(self, kind: str, subject: str, deep: bool, key: str | None, priority: int, later: int) -> None:
        args = {"id": subject, **({"deep": True} if deep and KINDS[kind].widens else {})}
        ident: list[str] = []

        def asked() -> tuple[str, bool]:
            with self.database.engine.begin() as connection:
                at = connection.execute(text(f"SELECT clock_timestamp() + interval '{later} minutes'")).scalar_one()
                answer = requests.enqueue(connection, kind, args, idempotency_key=key, run_at=at, priority=priority)
            ident.append(answer[0])
            return answer

        def modelled() -> tuple[str, bool]:
            at = self.store.now + 60 * later
            new = ident[0] if ident else None
            return self.store.enqueue(KINDS[kind], args, key=key, run_at=at, priority=priority, ident=new)

        self.both(asked, modelled)

    @precondition(lambda self: self.store.jobs)
    @rule(which=some, deep=st.booleans(), key=st.sampled_from([None, "k1", "k2"]))
    def ask_again(self, which: int, deep: bool, key: str | None) -> None:
        job = self.job(which)
        self.enqueue(job.kind.name, str(job.args["id"]), deep, job.key or key, 100, 0)

    @precondition(lambda self: self.store.jobs)
    @rule(which=some)
    def cancel(self, which: int) -> None:
        job = self.job(which)
        self.both(
            lambda: self.asked(lambda connection: requests.cancel(connection, job.id, "enough", requested_by="me")),
            lambda: self.store.cancel(job.id),
        )

    @precondition(lambda self: self.store.jobs)
    @rule(which=some)
    def retry(self, which: int) -> None:
        job = self.job(which, "failed", "blocked")
        self.both(
            lambda: self.asked(lambda connection: requests.retry(connection, job.id, requested_by="me")),
            lambda: self.store.retry(job.id),
        )

    @precondition(lambda self: self.store.jobs)
    @rule(which=some, by=st.sampled_from([0, 1, 1, 2, 9]), last=results)
    def step_back(self, which: int, by: int, last: Result) -> None:
        """A retry from so many steps before the one at which it stands; by nine, from one that there is not."""
        self.go_on(which, 1, last)
        held = [job for job in self.store.jobs.values() if job.state in {"blocked", "waiting"}]
        passed = [job for job in held if self.store.passed(job, job.direction)]
        job = (passed or held or [self.job(which)])[which % max(1, len(passed or held))]
        position = self.store.stands_at(job) + (by if job.direction == "back" else -by)
        step = job.names[position] if 0 <= position < len(job.names) else "s9"
        self.both(
            lambda: self.asked(lambda connection: requests.retry(connection, job.id, requested_by="me", from_step=step)),
            lambda: self.store.retry(job.id, step),
        )
        self.did[f"{job.direction} by {by}"] += job.state == "waiting" and job.position == position

    @precondition(lambda self: self.store.jobs)
    @rule(which=some)
    def skip(self, which: int) -> None:
        job = self.job(which, "blocked", "waiting")
        step = job.names[self.store.stands_at(job)]
        self.both(
            lambda: self.asked(lambda connection: requests.skip(connection, job.id, step, "it is gone", requested_by="me")),
            lambda: self.store.skip(job.id, step),
        )

    @rule(subject=st.sampled_from(SUBJECTS))
    def wake(self, subject: str) -> None:
        self.sql(f"SELECT worker.wake('workspace:{subject}')")
        self.store.wake(f"workspace:{subject}")

    @rule(scope=st.sampled_from([("all", ""), ("kind", "toy.make"), ("org", "x"), ("host", "there")]), over=st.booleans())
    def pause(self, scope: tuple[str, str], over: bool) -> None:
        verb = "resume" if over else "pause"
        with self.database.engine.begin() as connection:
            answer = connection.execute(
                text(f"SELECT worker.{verb}(:scope, :what)"), dict(zip(("scope", "what"), scope, strict=True))
            )
            assert answer.scalar_one() == (self.store.resume(*scope) if over else self.store.pause(*scope))

    # What processes do.

    @precondition(lambda self: len(self.members) < 3)
    @rule(host=st.sampled_from(["here", "there"]))
    def enter(self, host: str) -> None:
        self.members.append(Member(self.database, host))
        self.store.register(LEASE_S, host, self.members[-1].id)

    @precondition(lambda self: len(self.members) > 1)
    @rule(which=some, why=ends)
    def kill(self, which: int, why: str) -> None:
        self.end(self.member(which), why)

    @rule(which=some, why=ends, before=st.sampled_from([0, 0, 3, 4, 5]))
    def die_at_work(self, which: int, why: str, before: int) -> None:
        """A claim, and the end of its process, at a step that has seen others die."""
        claims = len(self.claims)
        self.claim(which, 1)
        if len(self.claims) > claims:
            job = self.store.jobs[self.claims[-1].id]
            self.sql(f"UPDATE worker.jobs SET crashes = {before} WHERE id = '{job.id}'")
            job.crashes = before
            self.end(next(member for member in self.members if member.id == job.process), why)
            if not self.members:
                self.enter("here")
            self.advance(3 if why == "elsewhere" else 1)

    @rule(which=some)
    def beat(self, which: int) -> None:
        member = self.member(which)
        running = frozenset(job.id for job in self.store._run_by(member.id))
        stops, beat = self.store.stops(member.id), member.register.beat()
        assert (beat.alive, beat.stops, beat.running) == (self.store.beat(member.id, LEASE_S), stops, running)
        assert beat.draining == (beat.alive and ("host", member.host) in self.store.pauses)

    @rule(which=some)
    def reap(self, which: int) -> None:
        blameless = sum(self.store.blameless(job) for job in self.store.orphans())
        back = self.store.reap()
        assert sum(self.member(which).register.reap().values()) == len(back)
        self.did["takeovers"] += len(back)
        self.did["takeovers that no step is blamed for"] += blameless

    @rule(which=some, most=st.sampled_from([1, 2, 5]))
    def claim(self, which: int, most: int) -> None:
        self.settle()
        member, after = self.alive(which), self.alive(which).claims._after
        self.hold(member.claims.claim(["toy"], most), self.store.claim(member.id, most, after=after))

    @precondition(lambda self: self.store.jobs)
    @rule(which=some, other=some)
    def claim_one(self, which: int, other: int) -> None:
        self.settle()
        member, job = self.alive(which), self.job(other, "queued", "waiting")
        self.hold(member.claims.claim(["toy"], 1, [job.id]), self.store.claim(member.id, 1, [job.id]))

    @rule(which=some, result=results)
    def move(self, which: int, result: Result) -> None:
        """Somebody who holds a job, by now or since long ago, has something to write."""
        if not self.claims:
            self.claim(which, 2)
        if self.claims:
            self.send([self.claims[which % len(self.claims)]], [result])

    @rule(which=some, done=st.integers(1, 4), last=results)
    def go_on(self, which: int, done: int, last: Result) -> None:
        """A claim, and its job so many steps further, and then whatever comes."""
        before = len(self.claims)
        self.claim(which, 1)
        for result in (*[Done({"n": 1})] * done, last):
            if len(self.claims) > before:
                self.send([self.claims[-1]], [result])

    @precondition(lambda self: len({claim.id for claim in self.claims}) > 1)
    @rule(first=results, second=results)
    def move_two(self, first: Result, second: Result) -> None:
        """Two jobs have something ready: one statement writes both."""
        last = {claim.id: claim for claim in self.claims}
        self.send(list(last.values())[:2], [first, second])

    @rule(minutes=st.sampled_from([1, 1, 2, 3]))
    def advance(self, minutes: int) -> None:
        """No server lets its clock be pushed; so every moment that is written moves into the past."""
        by = f"interval '{minutes} minutes'"
        self.sql(
            f"UPDATE worker.jobs SET run_at = run_at - {by}",
            f"UPDATE worker.processes SET lease_until = lease_until - {by}",
            f"UPDATE worker.steps SET started_at = started_at - {by}",
        )
        self.store.now += 60 * minutes
        self.reap(0)  # every process does, all the time

    @invariant()
    def rows_and_model_agree(self) -> None:
        self.store.now += 0.001  # no two requests come at the same moment
        self.look()
        wrong = differences(self.store, self.eye)
        if wrong:
            raise AssertionError("; ".join(wrong))

    # How.

    def look(self) -> None:
        for job in self.store.jobs.values():
            before = self.states.get(job.id, "queued")
            assert may_move(before, job.state), (job.id, before, job.state)
            self.states[job.id] = job.state
            if before != job.state:
                self.did[f"{before} → {job.state}"] += 1

    def sql(self, *statements: str) -> None:
        with self.database.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def asked(self, ask: Callable[[Any], Any]) -> Any:
        with self.database.engine.begin() as connection:
            return ask(connection)

    def both(self, real: Callable[[], Any], model: Callable[[], Any]) -> None:
        """The same answer, or the same refusal."""
        answer = answer_of(real)
        assert answer == answer_of(model)
        self.did[answer if isinstance(answer, str) else "requests granted"] += 1

    def job(self, which: int, *states: str) -> Job:
        jobs = [job for job in self.store.jobs.values() if job.state in states] or list(self.store.jobs.values())
        return jobs[which % len(jobs)]

    def end(self, member: Member, why: str) -> None:
        """`elsewhere`: it had entered on a server that is gone, hence no crash; no test has a replica to promote."""
        self.members.remove(member)
        if why == "in doubt":
            member.register.resign()
            self.store.resign(member.id)
        if why == "elsewhere":
            self.sql(f"UPDATE worker.processes SET server_started_at = server_started_at - interval '1 day' WHERE id = {member.id}")
            self.store.processes[member.id].server -= 1
        member.close()
        query = text("SELECT count(*) = 0 FROM pg_locks WHERE locktype = 'advisory' AND classid = :ns AND objid = :id")
        with self.database.engine.connect() as connection:
            until(lambda: connection.execute(query, {"ns": NAMESPACE, "id": member.id}).scalar_one(), what="the session is gone")
        self.store.processes[member.id].locked = False

    def member(self, which: int) -> Member:
        return self.members[which % len(self.members)]

    def alive(self, which: int) -> Member:
        """A process whose lease has ended claims nothing: it knows."""
        alive = [member for member in self.members if self.store.processes[member.id].lease_until > self.store.now]
        if not alive:
            self.enter("here")
        return (alive or self.members[-1:])[which % max(1, len(alive))]

    def settle(self) -> None:
        """A moment that is near would be near in real time only: let it pass in both."""
        if any(0 < job.run_at - self.store.now < 45 for job in self.store.jobs.values() if job.state in {"queued", "waiting"}):
            self.advance(1)

    def hold(self, real: Sequence[Claimed], model: Sequence[Job]) -> None:
        ideal = [self.held(job) for job in model]
        assert [comparable(claim) for claim in real] == [comparable(claim) for claim in ideal]
        self.claims += real
        self.look()

    def send(self, claims: Sequence[Claimed], results: Sequence[Result]) -> None:
        records = [self.taken(claim, result) for claim, result in zip(claims, results, strict=True)]
        real = self.applier.send(records)
        for claim, record, model in zip(claims, records, self.store.apply_all(records), strict=True):
            reply = real.get(claim.id)
            assert heard(reply) == heard(model)
            self.claims.remove(claim)
            self.did["decisions accepted" if model else "decisions refused"] += 1
            if model and record["next"] == "go":
                self.claims.append(self.held(self.store.jobs[claim.id]))
        self.name_children()
        self.look()

    def held(self, job: Job) -> Claimed:
        """What whoever drives it knows by now, and a claim would answer."""
        return held(job, job.steps, self.store.family(job), 0, self.store.now)

    def name_children(self) -> None:
        """Children get their ids from the database; the model gets to know them."""
        with self.database.engine.connect() as connection:
            children = text("SELECT parent::text, position, number, job_id::text FROM worker.children WHERE job_id IS NOT NULL")
            real = {(parent, at, number): ident for parent, at, number, ident in connection.execute(children)}
        seen: Counter[tuple[str, int]] = Counter()
        for child in self.store.children:
            seen[child.parent, child.position] += 1
            ident = real.get((child.parent, child.position, seen[child.parent, child.position]))
            if child.job in self.store.jobs and child.job != ident and ident is not None and child.job.startswith("j"):
                self.rename(child.job, ident)

    def rename(self, old: str, new: str) -> None:
        job = self.store.jobs.pop(old)
        job.id, self.store.jobs[new] = new, job
        for child in self.store.children:
            child.job = new if child.job == old else child.job

    def taken(self, claim: Claimed, result: Result) -> Record:
        """The decision of the real engine about this result."""
        return decided(claim, result, self.store.now)
