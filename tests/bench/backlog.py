"""What a claim, a bell, a beat, a reap and an enqueue cost beside many jobs, against the same beside a hundred of them.

Each backlog is a database of its own, and every round asks all of them one after the other, so that a moment in which the
machine is slow makes all of them slow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any, Final
from uuid import uuid4

from sqlalchemy import text

from tests.bench import engines
from tests.bench.ground import Database, Ground, Teller, vacuum
from tests.bench.table import Row, percentile, spread, times
from tests.bench.toys import ONE, numbered
from worker.engine.walk import Claimed
from worker.store import kinds, requests
from worker.store.jobs import Applier, Claims, Register

_ROUNDS: Final = 100
_AT_ONCE: Final = 10
_FEW: Final = 100
_MANY: Final = 100_000
_BUSY: Final = 5
_BEHIND: Final = 3_000
_MOST_TIMES: Final = 2.0
_ENQUEUE_MS: Final = 1.0
_LEASE_S: Final = 120.0
#: Long enough that in this run nothing is rung a second time.
_AGAIN_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Scene:
    """One backlog with a process that works on it, and what everything took there, in milliseconds."""

    name: str
    database: Database
    claims: Claims
    applier: Applier
    register: Register
    looks: list[float] = field(default_factory=list)  #: claims that found nothing to take, because they put aside what waits
    took: dict[str, list[float]] = field(default_factory=dict)

    def time(self, what: str, began: float) -> None:
        """Since `began`, a reading of perf_counter."""
        self.took.setdefault(what, []).append((perf_counter() - began) * 1000)


def measure(ground: Ground, tell: Teller) -> list[Row]:
    """A row for each backlog's claim, one for each other statement at its worst, and one for enqueue by itself."""
    tell.begin(f"claims beside {_MANY:,} jobs: filling {len(_FILLS)} databases")
    with ExitStack() as opened:
        scenes = []
        for name, fill in _FILLS.items():
            scenes.append(opened.enter_context(_scene(ground, name, fill)))
            tell.step(len(scenes), len(_FILLS))
        tell.begin(f"claims beside {_MANY:,} jobs: {_ROUNDS} rounds")
        for number in range(_ROUNDS):
            for scene in scenes:
                _round(scene)
            tell.step(number + 1, _ROUNDS)
        floor = _floor(scenes[0])
    few, *others = scenes
    statements = [what for what in few.took if what not in {"claim", "enqueue"}]
    return [
        *(_claim_row(few, scene) for scene in others),
        *(_row(what, few, others, f"{what}, beside any of these") for what in statements),
        *(_enqueue_row(scene, floor) for scene in scenes[:2]),
    ]


def _claim_row(few: Scene, scene: Scene) -> Row:
    row = _row("claim", few, [scene], f"a claim of {_AT_ONCE}, {scene.name}")
    looks = len(scene.looks) - 1
    return (
        row
        if looks == 0
        else replace(row, measured=f"{row.measured}; before, {looks} looks put them aside, max {max(scene.looks):.0f} ms")
    )


def _row(what: str, few: Scene, scenes: Sequence[Scene], said: str) -> Row:
    worst = max(scenes, key=lambda scene: percentile(scene.took[what], 50))
    cost, base = percentile(worst.took[what], 50), percentile(few.took[what], 50)
    return Row(
        said if len(scenes) == 1 else f"{said}; worst: {worst.name}",
        spread(worst.took[what], digits=2),
        f"{spread(few.took[what], digits=2)}: {few.name}",
        times(cost, base),
        f"≤ {_MOST_TIMES:g}×",
        met=cost <= _MOST_TIMES * base,
    )


def _enqueue_row(scene: Scene, floor: Sequence[float]) -> Row:
    took = scene.took["enqueue"]
    return Row(
        f"enqueue in the caller's transaction, {scene.name}",
        spread(took, tail=99, digits=2),
        f"{spread(floor, digits=2)}: INSERT of one row",
        times(percentile(took, 50), percentile(floor, 50)),
        f"p50 ≤ {_ENQUEUE_MS:g} ms",
        met=percentile(took, 50) <= _ENQUEUE_MS,
    )


def _round(scene: Scene) -> None:
    """Everything once. The jobs that were claimed end outside the timing, and as many come anew."""
    began = perf_counter()
    claimed = scene.claims.claim([str(ONE.queue)], _AT_ONCE)
    scene.time("claim", began)
    if len(claimed) != _AT_ONCE:
        raise AssertionError(f"{scene.name}: claimed {len(claimed)} of {_AT_ONCE}")
    scene.applier.send([_end(job) for job in claimed])
    with scene.database.engine.connect() as connection:
        for _ in range(_AT_ONCE):
            began = perf_counter()
            requests.enqueue(connection, ONE.name, {"id": str(uuid4())})
            scene.time("enqueue", began)
        connection.commit()
        began = perf_counter()
        rung = connection.execute(
            text("SELECT count(*) FROM worker.to_ring(:n, :again)"), {"n": 100, "again": _AGAIN_MS}
        ).scalar_one()
        connection.commit()
        scene.time(f"bells for {_AT_ONCE}", began)
    if rung != _AT_ONCE:
        raise AssertionError(f"{scene.name}: rang {rung} of {_AT_ONCE}")
    began = perf_counter()
    scene.register.beat()
    scene.time("a beat", began)
    began = perf_counter()
    scene.register.reap()
    scene.time("a reap", began)


def _put_aside(scene: Scene) -> None:
    """Until a claim is full: what it meets on the way is put aside once, and that is no part of a claim's usual cost."""
    for _ in range(_BEHIND):
        began = perf_counter()
        claimed = scene.claims.claim([str(ONE.queue)], _AT_ONCE)
        scene.looks.append((perf_counter() - began) * 1000)
        if claimed:
            scene.applier.send([_end(job) for job in claimed])
            with scene.database.engine.begin() as connection:
                engines.copies(connection, ONE, len(claimed))
        if len(claimed) == _AT_ONCE:
            return


def _end(job: Claimed) -> dict[str, Any]:
    """Its one step is done, as the drive would say it."""
    return {
        "job": job.id,
        "fence": job.fence,
        "direction": "forward",
        "position": 0,
        "name": job.steps[0],
        "status": "done",
        "attempt": 0,
        "took_ms": 0.0,
        "next": "rest",
        "rest": "succeeded",
        "to_direction": "forward",
        "to_position": 0,
        "to_attempt": 0,
    }


def _floor(scene: Scene) -> list[float]:
    """Milliseconds of an INSERT in a transaction, over the same driver."""
    took = []
    with scene.database.engine.connect() as connection:
        connection.execute(text("CREATE TABLE public.bare (id uuid PRIMARY KEY, args jsonb NOT NULL)"))
        for _ in range(_ROUNDS):
            began = perf_counter()
            connection.execute(text("INSERT INTO public.bare VALUES (:id, '{}')"), {"id": str(uuid4())})
            took.append((perf_counter() - began) * 1000)
        connection.rollback()
    return took


@contextmanager
def _scene(ground: Ground, name: str, fill: Callable[[Database, Claims], None]) -> Iterator[Scene]:
    with ground.database() as database, ExitStack() as closing:
        with database.engine.begin() as connection:
            kinds.write(connection, [ONE], backend="memory", host="local")
        register = Register(database.url, name="bench", pid=0, lease_s=_LEASE_S)
        closing.callback(register.close)
        claims = Claims(database.url, process_id=register.process_id, name="bench")
        closing.callback(claims.close)
        applier = Applier(database.url, name="bench")
        closing.callback(applier.close)
        fill(database, claims)
        with database.engine.begin() as connection:
            engines.copies(connection, ONE, _FEW)
        vacuum(database)
        scene = Scene(name, database, claims, applier, register)
        _put_aside(scene)
        yield scene


def _nothing(_database: Database, _claims: Claims) -> None:
    """Only the hundred that every scene has."""


def _queued(database: Database, _claims: Claims) -> None:
    with database.engine.begin() as connection:
        engines.copies(connection, ONE, _MANY)


def _elsewhere(database: Database, _claims: Claims) -> None:
    """Due, and on a queue that this process does not serve."""
    with database.engine.begin() as connection:
        engines.copies(connection, ONE, _MANY, "queue = 'bench.elsewhere'")


def _tomorrow(database: Database, _claims: Claims) -> None:
    with database.engine.begin() as connection:
        engines.copies(connection, ONE, _MANY, run_at=datetime.now(UTC) + timedelta(days=1))


def _behind(database: Database, claims: Claims) -> None:
    """Older than the hundred, and every one of them waits for a job that runs."""
    subjects = [str(uuid4()) for _ in range(_BUSY)]
    many = [numbered(n) for n in range(_BEHIND // _BUSY)]
    with database.engine.begin() as connection:
        kinds.write(connection, many, backend="memory", host="local")
        for subject in subjects:
            requests.enqueue(connection, ONE.name, {"id": subject})
    if len(claims.claim([str(ONE.queue)], _BUSY)) != _BUSY:
        raise AssertionError("the busy subjects are not busy")
    stored = "SELECT count(e.job_id) FROM unnest(CAST(:kinds AS text[])) AS k, LATERAL worker.enqueue(k, jsonb_build_object('id', CAST(:subject AS text))) AS e"
    with database.engine.begin() as connection:
        for subject in subjects:
            connection.execute(text(stored), {"kinds": [kind.name for kind in many], "subject": subject})
        connection.execute(text("UPDATE worker.jobs SET rung_at = clock_timestamp()"))


_FILLS: Final[Mapping[str, Callable[[Database, Claims], None]]] = {
    f"{_FEW} queued": _nothing,
    f"{_MANY:,} queued": _queued,
    f"{_BEHIND:,} queued behind {_BUSY} busy subjects": _behind,
    f"{_MANY:,} due on another queue": _elsewhere,
    f"{_MANY:,} of tomorrow": _tomorrow,
}
