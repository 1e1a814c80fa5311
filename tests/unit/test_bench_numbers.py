from tests.bench.spans import Span, covered
from tests.bench.table import percentile, times


def spans(*pairs: tuple[int, int]) -> list[Span]:
    return [Span("docker", "", begin, end) for begin, end in pairs]


def test_time_that_several_spans_share_counts_once() -> None:
    assert covered(spans((10, 40), (20, 30), (35, 50)), 0, 100) == 40


def test_what_lies_outside_the_window_does_not_count() -> None:
    assert covered(spans((0, 20), (90, 120), (200, 300)), 10, 100) == 20


def test_a_percentile_is_one_of_the_values() -> None:
    assert [percentile([3, 1, 2, 4], cut) for cut in (1, 50, 75, 95, 100)] == [1, 2, 3, 4, 4]


def test_a_ratio_to_nothing_is_none() -> None:
    assert (times(3, 2), times(300, 2), times(1, 0)) == ("1.50×", "150×", "–")
