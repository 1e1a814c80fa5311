"""What all examples of the comparison share: kinds of jobs, connections as the product opens them, the engine's own decisions."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import hypothesis.strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.conftest import Database
from tests.model.rows import Refusal
from tests.model.rows_of import prepare
from tests.toys import remember
from worker.engine.drive import Record, drive
from worker.engine.kinds import Arg, Kind
from worker.engine.machine import (
    HOUR,
    MINUTE,
    NOTHING,
    Blocked,
    Child,
    Done,
    Facts,
    Machine,
    NotYet,
    Passage,
    Result,
    Retry,
    Spread,
    Step,
)
from worker.engine.walk import Claimed, Reply
from worker.errors import Fatal, JournalLost, Refused, Retryable
from worker.store import connect
from worker.store.jobs import Applier, Claims, Register

LEASE_S = 120
_RETRY = Retry(attempts=3, first=2 * MINUTE, ceiling=4 * MINUTE)  # halved by a jitter of nought: whole minutes
SUBJECTS = [str(UUID(int=number)) for number in range(1, 5)]
ORGS = dict(zip(SUBJECTS, ("x", "x", "y", "z"), strict=True))


def _act(_passage: Passage, world: Any) -> Any:
    if isinstance(world, Exception):
        raise world
    return world


def _kind(name: str, steps: int, *, forward: bool = False, skippable: Sequence[str] = (), widens: Sequence[str] = ()) -> Kind:
    rows = [Step(f"s{at}", _act, NOTHING if forward else _act, within=HOUR, retry=_RETRY) for at in range(1, steps + 1)]
    args = {"id": Arg("uuid"), **{arg: Arg("boolean", required=False, default=False) for arg in widens}}
    machine = Machine(name, rows, only_forward=forward)
    return Kind(machine, "workspace:", "id", args, "toy", bool(widens), widens, skippable=skippable)


KINDS = {
    kind.name: kind
    for kind in (
        _kind("toy.make", 3, skippable=("s2",)),
        _kind("toy.mend", 1),
        _kind("toy.check", 2, forward=True),
        _kind("toy.remove", 2, forward=True, widens=("deep",)),
    )
}

some = st.integers(0, 30)  #: which of those there are
ends = st.sampled_from(["unasked", "elsewhere", "in doubt"])  #: of a process
results = st.sampled_from(
    [
        *[Done({"n": number}) for number in range(4)],
        NotYet("the world", timedelta()),
        NotYet("the world", 3 * MINUTE),
        Retryable("act: busy"),
        Fatal("act: never"),
        Blocked("act: ask a person"),
        Spread([Child("toy.mend", {"id": SUBJECTS[0]}), Child("toy.check", {"id": SUBJECTS[1]})], most=1),
        Spread([Child("toy.mend", {"id": subject}) for subject in SUBJECTS], most=2),
    ]
)


class Taker:
    """A journal that keeps the decision and answers nothing."""

    def __init__(self) -> None:
        self.record: Record = {}

    def apply(self, record: Record) -> Reply | None:
        self.record = record
        raise JournalLost("apply decision: taken down")

    def apply_with(self, record: Record, rows: Callable[[Any], Facts | None]) -> Reply | None:
        raise AssertionError("no step of this test writes rows")


class Here:
    """A right to work that holds."""

    def valid(self) -> bool:
        return True

    def stopping(self, _job_id: str) -> bool:
        return False

    def leaving(self) -> bool:
        return False


class Member:
    """A process: its own connections, as the product opens them."""

    def __init__(self, database: Database, host: str) -> None:
        self.host = host
        self.register = Register(database.url, name="t", pid=1, lease_s=LEASE_S, host=host)
        self.id = self.register.process_id
        self.claims = Claims(database.url, process_id=self.id, name="t")

    def close(self) -> None:
        self.claims.close()
        self.register._connection.close()


class Bench:
    """What all examples share: a database with the kinds and placements of this test, and connections to it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.did: Counter[str] = Counter()
        self.applier = Applier(database.url, name="t")
        self.eye = connect.open_raw(database.url, name="t")
        prepare(self.eye)
        remember(database, *KINDS.values())
        place = text("INSERT INTO worker.placements (workspace_id, org, backend, host) VALUES (:id, :org, 'memory', 'local')")
        with database.engine.begin() as connection:
            for subject, org in ORGS.items():
                connection.execute(place, {"id": subject, "org": org})

    def close(self) -> None:
        self.applier.close()
        self.eye.close()


def decided(claim: Claimed, result: Result, now: float) -> Record:
    """The real engine's decision about this result."""
    taker = Taker()
    with suppress(JournalLost):
        drive(claim, KINDS[claim.kind].machine, result, taker, Here(), clock=lambda: now)
    return taker.record


def answer_of(ask: Callable[[], Any]) -> Any:
    """What it says, or with which code it is refused."""
    try:
        return ask()
    except Refused as refused:
        return f"refused: {getattr(getattr(refused.__cause__, 'orig', None), 'pgcode', None)}"
    except DBAPIError as error:
        return f"refused: {getattr(error.orig, 'pgcode', None)}"
    except Refusal as refusal:
        return f"refused: {refusal.code}"
