import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from io import StringIO
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

import httpx
import psycopg2
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretBytes, SecretStr
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError

from config import logs, redact
from worker.domain import Secret
from worker.errors import Refused

CANARY = "cana" + "ry-3f9c2b"


@dataclass
class Loose:
    """Somebody's object whose repr says everything."""

    value: str


class Colour(Enum):
    RED = "red"


class Told(psycopg2.Error):
    """As the driver's: the statement in the text, the SQLSTATE beside it."""

    pgcode = "23505"


CARRIERS: list[Callable[[str], Any]] = [
    Secret,
    SecretStr,
    str.encode,
    lambda canary: bytearray(canary.encode()),
    lambda canary: memoryview(canary.encode()),
    Loose,
    ValueError,
    KeyError,
    RuntimeError,
    Told,
    lambda canary: SecretBytes(canary.encode()),
    lambda canary: lambda: canary,
    lambda canary: ProgrammingError(f"SELECT '{canary}'", {}, Told(canary)),
    lambda canary: httpx.URL(f"https://me:{canary}@host/path"),
    lambda canary: make_url(f"postgresql://me:{canary}@host/name"),
    lambda canary: f"redis://:{canary}@host:6379/0",
    lambda canary: f"cannot reach amqp://{canary}@host// at all",
    lambda canary: f"see postgresql://me:pa/{canary}@host/name",
]


plain = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.uuids() | st.datetimes() | st.timedeltas()
)
hidden = st.sampled_from(CARRIERS).map(lambda make: make(CANARY))


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=4), inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(hidden.filter(_hashable), inner, max_size=1)
        ),
        max_leaves=8,
    )


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@settings(max_examples=50)
@given(nested(plain | hidden))
def test_a_canary_in_any_position_never_appears_and_the_line_is_json(value: Any) -> None:
    line = json.dumps(redact.clean({"event": "x", "value": value}), allow_nan=False)

    assert CANARY not in line


@pytest.mark.parametrize("carry", CARRIERS)
def test_no_carrier_lets_its_canary_out(carry: Callable[[str], Any]) -> None:
    assert CANARY not in json.dumps(redact.clean({"nested": [carry(CANARY)]}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=6
    )
)
def test_what_is_plain_passes_unchanged(value: Any) -> None:
    assert redact.clean(value) == value


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (Secret(CANARY), "[redacted]"),
        (SecretStr(CANARY), "[redacted]"),
        (b"12345", "[5 bytes]"),
        (Loose(CANARY), "Loose"),
        (Colour.RED, "red"),
        (UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (datetime(2030, 1, 31, tzinfo=UTC), "2030-01-31T00:00:00+00:00"),
        (timedelta(seconds=90), "0:01:30"),
        (PurePosixPath("/var/lib"), "/var/lib"),
        (float("nan"), "nan"),
        ({1: {2}}, {"1": [2]}),
        (Refused("store it: it is too long"), "Refused: store it: it is too long"),
        (ValueError(CANARY), "ValueError"),
        (Told(CANARY), "Told [23505]"),
        (ConnectionRefusedError(111, "Connection refused"), "ConnectionRefusedError: Connection refused"),
        ("redis://:pw@host:6379/0", "redis://[redacted]@host:6379/0"),
        ("https://host:8080/a?mail=a@b", "https://host:8080/a?mail=a@b"),
        ("https://host/@user", "https://host/@user"),
        ("mail a@b", "mail a@b"),
    ],
)
def test_each_type_is_shown_as_its_rule_says(given: Any, shown: Any) -> None:
    assert redact.clean(given) == shown


def test_a_nest_without_end_is_cut() -> None:
    loop: list[Any] = []
    loop.append(loop)

    assert "list" in json.dumps(redact.clean(loop))


def _raised(act: Callable[[], object]) -> BaseException:
    try:
        act()
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError


def test_a_bug_of_ours_is_told_with_its_frames_and_the_interpreters_own_words() -> None:
    told = redact.trace(_raised(lambda: redact.text(None)))  # type: ignore[arg-type]

    assert told.splitlines()[-1] == "TypeError: argument of type 'NoneType' is not iterable"
    assert "test_redact.py" in told
    assert told.splitlines()[-2].endswith("in text")


def test_the_same_error_raised_by_others_is_told_by_its_type_alone() -> None:
    def theirs() -> None:
        raise TypeError(CANARY)

    assert redact.trace(_raised(theirs)).splitlines()[-1] == "TypeError"


def test_what_a_foreign_error_quotes_is_not_told_wherever_it_stands_in_the_chain() -> None:
    def chained() -> None:
        try:
            int(CANARY)
        except ValueError as error:
            raise Refused("read number: it is none") from error

    told = redact.trace(_raised(chained))

    assert CANARY not in told
    assert told.splitlines()[-1] == "Refused: read number: it is none"
    assert "ValueError\nwhich led to:" in told


@pytest.mark.parametrize("form", ["json", "console"])
def test_libraries_logs_go_through_the_same_rules(form: Any) -> None:
    written = _written(
        form, lambda: logging.getLogger("celery.worker").error("lost %s with %r: %s", Loose(CANARY), b"x" * 3, KeyError(CANARY))
    )

    assert CANARY not in written
    assert "lost Loose with '[3 bytes]': KeyError" in written


def test_a_librarys_number_format_that_meets_a_secret_shows_neither_and_is_not_lost() -> None:
    written = _written("json", lambda: logging.getLogger("kombu").error("%d of them", Loose(CANARY)))

    assert json.loads(written)["event"] == "%d of them"
    assert json.loads(written)["arguments"] == ["Loose"]


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_in_a_log_keeps_its_frames_and_loses_its_text(form: Any) -> None:
    def act() -> None:
        try:
            _refuse()
        except ProgrammingError:
            structlog.get_logger().exception("broke", what=Loose(CANARY))

    written = _written(form, act)

    assert CANARY not in written
    assert "ProgrammingError [23505]" in written
    assert "test_redact.py" in written


def _refuse() -> None:
    raise ProgrammingError(f"SELECT '{CANARY}'", {}, Told(CANARY))


def _written(form: Any, act: Callable[[], None]) -> str:
    """What one log call writes; the process's own logging is as before afterwards."""
    root, stream = logging.getLogger(), StringIO()
    before = (root.handlers, root.level, structlog.get_config())
    try:
        logs.set_up(form=form, level="INFO")
        handler: Any = root.handlers[0]
        handler.setStream(stream)
        act()
    finally:
        root.handlers, root.level = before[0], before[1]
        structlog.configure(**before[2])
    return stream.getvalue()
