"""The policy of the engine, one property for each of its sentences, attacked by Hypothesis."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.decide import Decision, Move, Rest, Situation, Wait, decide, turn_back
from worker.engine.machine import NOTHING, Blocked, Direction, Done, NotYet, Passage, Result, Retry, Step
from worker.errors import BackendBusy, Blame, Fatal, Misconfigured, Refused, Retryable, WorkerError

# No database of examples, because the tier touches no file; few examples, because all of it must stay below two seconds.
few = settings(max_examples=15, deadline=None, database=None)

MILLISECOND = timedelta(milliseconds=1)


def undo(_passage: Passage, _world: Any) -> Done:
    """An undo that is not NOTHING; no property calls it."""
    return Done()


spans = st.integers(1, 10_000_000).map(lambda n: n * MILLISECOND)
jitters = st.floats(0, 1, exclude_max=True)
texts = st.sampled_from(["a kettle", "no room", "a person"])
retryable: st.SearchStrategy[Result] = st.sampled_from([Retryable("is away"), BackendBusy("no room", hint="wait")])
fatal: st.SearchStrategy[Result] = st.sampled_from(
    [Fatal("never"), Refused("no", hint="ask for less"), Misconfigured("no key", detail={"missing": ["KEY"]})]
)
not_yet: st.SearchStrategy[Result] = st.builds(NotYet, texts, after=spans)
blocked: st.SearchStrategy[Result] = st.builds(Blocked, texts, who=st.sampled_from([*map(str, Blame), "a newer release"]))
done: st.SearchStrategy[Result] = st.sampled_from([Done(), Done({"image": "sha256:0"})])
failures = retryable | fatal | not_yet
results = failures | blocked | done

#: Which rows have something to undo, for every machine of one to four rows.
PATTERNS = [pattern for rows in range(1, 5) for pattern in product((True, False), repeat=rows)]


@st.composite
def situations(draw: st.DrawFn, *, direction: Direction | None = None, only_forward: bool | None = None) -> Situation:
    """Anywhere that a job can stand, no step at its deadline yet. No two rows have the same retry or deadline."""
    one_way = draw(st.booleans()) if only_forward is None else only_forward
    way = direction or (Direction.FORWARD if one_way else draw(st.sampled_from(Direction)))
    pattern, attempts, first, ceiling, within = draw(st.tuples(st.sampled_from(PATTERNS), st.integers(1, 4), spans, spans, spans))
    steps = [
        Step(
            f"s{n}",
            do=NOTHING,
            undo=undo if has and not one_way else NOTHING,
            within=within * (n + 1),
            retry=Retry(attempts + n, first * (n + 1), ceiling * (n + 1)),
        )
        for n, has in enumerate(pattern)
    ]
    position = draw(st.integers(0, len(steps) - 1))
    attempt = draw(st.integers(0, attempts + position - 1))
    elapsed = steps[position].within * draw(st.sampled_from([0.0, 0.5, 0.99]))
    return Situation(steps, one_way, position, way, attempt, elapsed, cancelled=draw(st.booleans()))


forward = situations(direction=Direction.FORWARD)
two_way = situations(direction=Direction.FORWARD, only_forward=False)
one_way = situations(direction=Direction.FORWARD, only_forward=True)
back = situations(direction=Direction.BACK, only_forward=False)


def here(now: Situation) -> Step:
    return now.steps[now.position]


def late(now: Situation) -> Situation:
    return replace(now, elapsed=here(now).within)


def undone_from(now: Situation, position: int) -> list[int]:
    """What has to be undone when the row at `position` is the newest, in order."""
    return [n for n in range(position, -1, -1) if now.steps[n].undo is not NOTHING]


def after(now: Situation, decision: Decision, pause: timedelta) -> Situation | None:
    """Where the job stands when it is looked at again; None when nothing happens by itself any more."""
    if isinstance(decision, Wait):
        return (
            None if decision.after is None else replace(now, attempt=decision.attempt, elapsed=now.elapsed + pause + decision.after)
        )
    if decision.to is None:
        return None
    return replace(now, position=decision.to, direction=decision.direction, attempt=0, elapsed=timedelta(0))


def lived(now: Situation, story: Iterable[Result]) -> list[tuple[Situation, Decision]]:
    """A job's way through its machine under these results, until it rests or waits for a person."""
    way = []
    for result in story:
        decision = decide(now, result, jitter=0.5)
        way.append((now, decision))
        later = after(now, decision, MILLISECOND)
        if later is None:
            return way
        now = later
    return way


# ---- forward


@few
@given(forward, done, jitters)
def test_done_goes_on_to_the_next_row_with_its_facts(now: Situation, result: Done, jitter: float) -> None:
    last = now.position == len(now.steps) - 1

    assert decide(now, result, jitter=jitter) == Move(
        True, Direction.FORWARD, None if last else now.position + 1, Rest.SUCCEEDED if last else None, result.facts
    )


@few
@given(forward)
def test_a_job_of_which_every_step_is_done_visits_each_row_once_and_succeeds(now: Situation) -> None:
    way = lived(replace(now, position=0), [Done()] * 9)

    assert [at.position for at, _ in way] == list(range(len(now.steps)))
    assert isinstance(way[-1][1], Move)
    assert way[-1][1].rest is Rest.SUCCEEDED


@few
@given(forward, not_yet, jitters)
def test_being_early_costs_no_attempt_and_waits_as_long_as_the_step_said(now: Situation, result: NotYet, jitter: float) -> None:
    assert decide(now, result, jitter=jitter) == Wait(result.after, now.attempt, result.what)


@few
@given(two_way, not_yet, jitters)
def test_being_early_at_the_deadline_is_given_up_and_says_what_it_waited_for(now: Situation, result: NotYet, jitter: float) -> None:
    decision = decide(late(now), result, jitter=jitter)

    assert isinstance(decision, Move)
    assert (decision.direction, decision.done) == (Direction.BACK, False)
    assert decision.error is not None
    assert (decision.error["code"], decision.error["blame"]) == ("deadline", "provider")
    assert result.what in decision.error["message"]
    assert decision.error["step"] == here(now).name


@few
@given(two_way, retryable, jitters)
def test_a_failure_at_the_deadline_is_given_up_whatever_attempts_are_left(now: Situation, result: Retryable, jitter: float) -> None:
    decision = decide(late(replace(now, attempt=0)), result, jitter=jitter)

    assert isinstance(decision, Move)
    assert decision.direction is Direction.BACK


@few
@given(two_way, retryable)
def test_a_failing_step_is_tried_exactly_as_often_as_its_row_says(now: Situation, result: Retryable) -> None:
    endless = [replace(step, within=timedelta.max) for step in now.steps]
    way = lived(replace(now, steps=endless, attempt=0), [result] * 9)
    here_only = [decision for at, decision in way if at.direction is Direction.FORWARD]

    assert len(here_only) == here(now).retry.attempts
    assert isinstance(here_only[-1], Move)
    assert all(isinstance(decision, Wait) for decision in here_only[:-1])


@few
@given(two_way, fatal, jitters)
def test_what_will_never_pass_turns_the_job_round_at_once(now: Situation, result: Fatal, jitter: float) -> None:
    decision = decide(replace(now, attempt=0, elapsed=timedelta(0)), result, jitter=jitter)

    assert isinstance(decision, Move)
    assert (decision.direction, decision.done) == (Direction.BACK, False)


@few
@given(situations(), blocked, jitters, st.booleans())
def test_blocked_waits_for_a_person_costs_no_attempt_and_knows_no_deadline(
    now: Situation, result: Blocked, jitter: float, at_end: bool
) -> None:
    decision = decide(late(now) if at_end else now, result, jitter=jitter)

    assert isinstance(decision, Wait)
    assert (decision.after, decision.attempt, decision.what) == (None, now.attempt, result.reason)
    assert decision.error is not None
    assert decision.error["step"] == here(now).name
    assert decision.error["blame"] == (result.who if result.who in set(Blame) else "operator")


# ---- delays


@few
@given(situations(), retryable, jitters)
def test_a_delay_doubles_up_to_the_ceiling_and_is_spread_over_its_upper_half(
    now: Situation, result: Retryable, jitter: float
) -> None:
    now = replace(now, steps=[replace(step, retry=replace(step.retry, attempts=99)) for step in now.steps])
    retry = here(now).retry
    full = min(retry.ceiling, retry.first * 2**now.attempt)
    decision = decide(now, result, jitter=jitter)

    assert isinstance(decision, Wait)
    assert decision.after is not None
    assert decision.after == full * (0.5 + jitter / 2)
    assert full / 2 - MILLISECOND <= decision.after <= full <= retry.ceiling
    assert decision.attempt == now.attempt + 1


@few
@given(back, retryable, jitters, st.integers(40, 10**9))
def test_an_undo_that_failed_a_billion_times_still_waits_below_its_ceiling(
    now: Situation, result: Retryable, jitter: float, attempt: int
) -> None:
    decision = decide(replace(now, attempt=attempt), result, jitter=jitter)

    assert isinstance(decision, Wait)
    assert decision.after == here(now).retry.ceiling * (0.5 + jitter / 2)


@few
@given(situations(), st.floats(0, 1e6), jitters)
def test_the_delay_that_a_peer_asked_for_is_respected(now: Situation, wish: float, jitter: float) -> None:
    now = replace(now, attempt=0, steps=[replace(step, retry=replace(step.retry, attempts=9)) for step in now.steps])
    asked = decide(now, Retryable("busy", after=wish), jitter=jitter)
    unasked = decide(now, Retryable("busy"), jitter=jitter)

    assert isinstance(asked, Wait)
    assert isinstance(unasked, Wait)
    assert asked.after is not None
    assert unasked.after is not None
    assert asked.after == max(unasked.after, timedelta(seconds=wish))


# ---- back


@few
@given(two_way, fatal)
def test_undoing_goes_newest_first_with_the_failed_row_itself_and_skips_what_left_nothing(now: Situation, result: Fatal) -> None:
    way = lived(replace(now, cancelled=False), [result, *[Done()] * 9])
    undoing = [at.position for at, _ in way if at.direction is Direction.BACK]
    end = way[-1][1]

    assert undoing == undone_from(now, now.position)
    assert isinstance(end, Move)
    assert (end.to, end.rest) == (None, Rest.FAILED)


@few
@given(two_way, fatal)
def test_what_a_person_cancelled_rests_in_cancelled(now: Situation, result: Fatal) -> None:
    now = replace(now, cancelled=True)
    at_once = turn_back(now, None, done=False)
    way = lived(now, [result, *[Done()] * 9])
    end = way[-1][1]

    assert at_once.to == next(iter(undone_from(now, now.position)), None)
    assert at_once.rest is (Rest.CANCELLED if at_once.to is None else None)
    assert isinstance(end, Move)
    assert end.rest is Rest.CANCELLED


@few
@given(back, failures, jitters, st.integers(0, 10**9), st.booleans())
def test_an_undo_is_never_given_up_however_often_and_late_it_fails(
    now: Situation, result: Result, jitter: float, attempt: int, at_end: bool
) -> None:
    decision = decide(late(replace(now, attempt=attempt)) if at_end else replace(now, attempt=attempt), result, jitter=jitter)

    assert isinstance(decision, Wait)
    assert decision.after is not None


@few
@given(back, fatal, jitters)
def test_an_undo_that_can_not_pass_waits_at_its_ceiling_and_raises_the_alarm(now: Situation, result: Fatal, jitter: float) -> None:
    decision = decide(now, result, jitter=jitter)

    assert isinstance(decision, Wait)
    assert (decision.after, decision.attempt) == (here(now).retry.ceiling, now.attempt + 1)
    assert decision.error is not None
    assert decision.error["message"] == result.message


@few
@given(back, not_yet, jitters)
def test_an_undo_that_is_early_knows_no_deadline(now: Situation, result: NotYet, jitter: float) -> None:
    assert decide(late(now), result, jitter=jitter) == Wait(result.after, now.attempt, result.what)


@few
@given(back, done)
def test_an_undone_row_is_left_upwards_and_for_good(now: Situation, result: Done) -> None:
    decision = decide(now, result, jitter=0.0)

    assert isinstance(decision, Move)
    assert (decision.done, decision.direction, decision.facts) == (True, Direction.BACK, result.facts)
    assert decision.to == next(iter(undone_from(now, now.position - 1)), None)
    assert (decision.rest is None) == (decision.to is not None)


# ---- only forward


@few
@given(one_way, results, jitters, st.booleans())
def test_a_machine_that_only_goes_forward_never_goes_back_and_never_fails(
    now: Situation, result: Result, jitter: float, at_end: bool
) -> None:
    decision = decide(late(now) if at_end else now, result, jitter=jitter)

    if isinstance(decision, Move):
        assert decision.direction is Direction.FORWARD
        assert decision.rest in {None, Rest.SUCCEEDED}


@few
@given(one_way, retryable | not_yet, jitters)
def test_what_can_not_be_done_forward_waits_for_a_person_and_keeps_its_attempts(
    now: Situation, result: Result, jitter: float
) -> None:
    spent = late(replace(now, attempt=here(now).retry.attempts - 1))
    for given_up in (decide(spent, result, jitter=jitter), decide(now, Refused("no"), jitter=jitter)):
        assert isinstance(given_up, Wait)
        assert given_up.after is None
        assert given_up.error is not None
        assert given_up.attempt < here(now).retry.attempts


# ---- the whole


@few
@given(situations(), st.lists(failures | done, min_size=1, max_size=6), jitters)
def test_every_job_comes_to_rest_or_waits_for_a_person(now: Situation, habits: list[Result], jitter: float) -> None:
    """The world may misbehave in any order for any time; only undos must be let through in the end."""
    bound = 0
    while now is not None:
        habit = habits[bound % len(habits)]
        result = Done() if now.direction is Direction.BACK and bound > 100 else habit
        if isinstance(result, NotYet):
            result = replace(result, after=max(result.after, here(now).within / 10))
        decision = decide(now, result, jitter=jitter)
        now = after(now, decision, MILLISECOND)  # type: ignore[assignment]  # None ends the loop
        bound += 1
        assert bound < 300

    assert isinstance(decision, Wait) or decision.rest is not None


@few
@given(situations(), results, jitters)
def test_a_job_rests_exactly_when_it_has_nowhere_to_go(now: Situation, result: Result, jitter: float) -> None:
    decision = decide(now, result, jitter=jitter)

    if isinstance(decision, Move):
        assert (decision.to is None) == (decision.rest is not None)
        assert decision.to is None or 0 <= decision.to < len(now.steps)


@few
@given(situations(), retryable | fatal, jitters)
def test_an_error_says_what_happened_whose_fault_what_to_do_and_where(now: Situation, result: WorkerError, jitter: float) -> None:
    decision = decide(now, result, jitter=jitter)  # type: ignore[arg-type]  # both are results

    assert decision.error == {
        "code": result.code,
        "message": result.message,
        "hint": result.hint,
        "blame": str(result.blame),
        "step": here(now).name,
        **result.detail,
    }


@few
@given(situations(), results, jitters)
def test_the_same_question_has_the_same_answer(now: Situation, result: Result, jitter: float) -> None:
    assert decide(now, result, jitter=jitter) == decide(now, result, jitter=jitter)
