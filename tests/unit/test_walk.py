"""Where a job is taken up again, whatever of it was passed before and by whomever."""

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.machine import Direction
from worker.engine.walk import Claimed, PastStep, Walk, start

few = settings(max_examples=100, deadline=None, database=None)

#: Rows of the other direction, and those that were only begun, say nothing of how far it is.
STATUSES = ("waiting", "done", "failed", "skipped")


@st.composite
def claims(draw: st.DrawFn) -> Claimed:
    """Any job with any rows; the last row of its way is never done, because a job that did that has ended."""
    names = [f"s{n}" for n in range(draw(st.integers(1, 6)))]
    direction = draw(st.sampled_from(Direction))
    ends = {Direction.FORWARD: len(names) - 1, Direction.BACK: 0}
    rows = draw(st.dictionaries(st.tuples(st.sampled_from(Direction), st.integers(0, len(names) - 1)), st.sampled_from(STATUSES)))
    past = [
        PastStep(way, position, names[position], status, {}, timedelta())
        for (way, position), status in rows.items()
        if (position, status) != (ends[way], "done")
    ]
    position, attempt = draw(st.integers(0, len(names) - 1)), draw(st.integers(0, 3))
    return Claimed("j", "toy.make", "toy:1", {}, names, False, direction, position, attempt, fence=1, stop=None, past=past)


def passed(job: Claimed) -> set[int]:
    return {row.position for row in job.past if row.direction is job.direction and row.status in {"done", "skipped"}}


def taken_up(job: Claimed) -> Walk:
    return start(job, None, lambda: 0.0)


@few
@given(claims())
def test_nothing_that_was_passed_lies_ahead_so_it_is_not_acted_again(job: Claimed) -> None:
    walk = taken_up(job)
    ahead = range(walk.position, len(job.steps)) if job.direction is Direction.FORWARD else range(walk.position + 1)

    assert passed(job) & set(ahead) <= ({walk.position} if walk.is_skipped else set())


@few
@given(claims())
def test_it_is_taken_up_where_it_was_or_right_beyond_what_was_passed(job: Claimed) -> None:
    walk = taken_up(job)
    before = walk.position + (-1 if job.direction is Direction.FORWARD else 1)

    assert walk.position == job.position or before in passed(job) or walk.position in passed(job)


@few
@given(claims())
def test_failed_attempts_count_for_the_step_that_had_them(job: Claimed) -> None:
    walk = taken_up(job)

    assert walk.attempt == (job.attempt if walk.position == job.position else 0)
