"""What a look at one dependency found."""

from dataclasses import dataclass
from enum import StrEnum

from worker.errors import Retryable, WorkerError


class Verdict(StrEnum):
    """How it stands."""

    OK = "ok"
    #: it works without, or it is about to be needed
    WARNING = "warning"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `doctor`."""

    name: str
    verdict: Verdict
    said: str
    mend: str = ""
    unreachable: bool = False  #: it is needed and does not answer


def ok(name: str, said: str) -> Finding:
    """Nothing to do."""
    return Finding(name, Verdict.OK, said)


def warning(name: str, said: str, mend: str) -> Finding:
    """It works without."""
    return Finding(name, Verdict.WARNING, said, mend)


def wrong(name: str, said: str, mend: str) -> Finding:
    """It must be mended."""
    return Finding(name, Verdict.WRONG, said, mend)


def faulty(name: str, error: WorkerError) -> Finding:
    """It must be mended, as the error says; its first words name the action, and `name` says that already."""
    return Finding(name, Verdict.WRONG, error.message.partition(": ")[2] or error.message, error.hint, isinstance(error, Retryable))
