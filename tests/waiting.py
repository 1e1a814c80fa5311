"""Wait for a fact with a deadline; the only place in the tests where time passes on purpose."""

from collections.abc import Callable
from threading import Event
from time import monotonic
from typing import TypeVar

T = TypeVar("T")


def until(fact: Callable[[], T], *, within: float = 10.0, what: str = "") -> T:
    """The first true answer of `fact`. Raises AssertionError with its last answer when the time is over."""
    end = monotonic() + within
    while True:
        answer = fact()
        if answer:
            return answer
        if monotonic() > end:
            raise AssertionError(f"not within {within} s: {what or fact}; last answer {answer!r}")
        Event().wait(0.02)
