"""Whatever anybody asks in whatever order: the real tables hold what the plain model holds, after every single request."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import Database
from tests.model.asking import Rows
from tests.model.bench import Bench
from tests.model.rows import Job
from tests.model.store import Store
from tests.system.size import full


@pytest.fixture
def bench(database: Database) -> Iterator[Bench]:
    bench = Bench(database)
    yield bench
    bench.close()


def run(bench: Bench, examples: int, store: type[Store] = Store) -> None:
    class Example(Rows):
        def __init__(self) -> None:
            super().__init__(bench, store)

    run_state_machine_as_test(
        Example,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            database=None,
            print_blob=True,
            # One is enough to be red, and a group of several would be no AssertionError.
            report_multiple_bugs=False,
            # A build is not red by chance: it repeats the same examples, and `make prove` draws others each time.
            derandomize=not full(),
            # Shrinking takes minutes, and thirty requests can be read as they are.
            phases=(Phase.generate, Phase.shrink) if full() else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(3600 if full() else 180)
def test_the_tables_hold_what_the_model_holds(bench: Bench) -> None:
    run(bench, 2_000 if full() else 60)

    print(f"{bench.did.total()} things:", ", ".join(f"{count} {what}" for what, count in sorted(bench.did.items())))  # noqa: T201
    assert {"decisions accepted", "decisions refused", "running → succeeded", "running → blocked"} <= set(bench.did)
    assert bench.did["takeovers"] > bench.did["takeovers that no step is blamed for"] > 0
    assert bench.did["forward by 1"]


class Roomy(Store):
    """A model that lets nobody stand aside."""

    def _must_park(self, job: Job) -> bool:
        return False


def test_a_rule_that_only_one_of_them_follows_is_found(bench: Bench) -> None:
    with pytest.raises(AssertionError, match="You can reproduce"):
        run(bench, 30, Roomy)
