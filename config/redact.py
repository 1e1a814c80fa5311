"""What a log line may say: plain values pass, everything else is named by its type and nothing more.

By type and not by call site, because a secret leaks through the call that nobody thought of.
"""

import math
import re
import traceback
from collections.abc import Iterator
from datetime import date, time, timedelta
from enum import Enum
from pathlib import PurePath
from types import TracebackType
from typing import Any, Final
from uuid import UUID

#: Types whose name alone says that the value is secret; by name, because this package imports none of ours.
_SECRET: Final = frozenset({"Secret", "SecretStr", "SecretBytes"})
#: Types of URLs that show a password, or not, in their text.
_URLS: Final = frozenset({"URL", "Url", "AnyUrl"})
_REDACTED: Final = "[redacted]"
_DEEPEST: Final = 8
#: What stands before the host: up to the last @ of the authority; and beyond a slash, where a password was not encoded.
_USERINFO: Final = re.compile(r"""(?<=://)(?:[^\s/?#:@]*:(?!\d{1,5}(?:[/?#\s]|$))[^\s"'<>]*@|[^\s/?#"'<>]*@)""")
_OURS: Final = frozenset({"config", "worker", "tasks"})
#: Raised by the interpreter itself, in one of our own frames, their text names types and names, never values.
_TELLING: Final = (TypeError, AttributeError, NameError, ImportError, ZeroDivisionError, RecursionError)


def clean(value: Any, depth: int = 0) -> Any:
    """Pure: the value as JSON may show it, with nothing in it that only a repr would give away."""
    found: Any
    match value:
        case None | bool():
            found = value
        case Enum():
            found = clean(value.value, depth)
        case int():
            found = int(value)
        case float():
            found = float(value) if math.isfinite(value) else f"{float(value)}"
        case str():
            found = text(str.__str__(value))
        case tuple() if type(value).__name__ in _URLS:
            found = _scalar(value)  # SQLAlchemy's URL is a tuple, its password one of the fields
        case dict() | list() | tuple() | set() | frozenset():
            found = _nested(value, depth)
        case _:
            found = _scalar(value)
    return found


def text(value: str) -> str:
    """Pure: without the user and the password of any URL in it."""
    return _USERINFO.sub(f"{_REDACTED}@", value) if "@" in value else value


def said(error: BaseException) -> str:
    """Pure: the error's type, and what it says where that cannot quote a value; a database's error by its SQLSTATE."""
    name = type(error).__name__
    if (message := getattr(error, "message", None)) and isinstance(message, str) and _is_ours(type(error).__module__):
        return f"{name}: {text(message)}"
    sqlstate = getattr(error, "pgcode", None) or getattr(getattr(error, "orig", None), "pgcode", None)
    if isinstance(sqlstate, str):
        return f"{name} [{sqlstate}]"
    if isinstance(error, OSError) and isinstance(error.strerror, str) and type(error).__module__ == "builtins":
        return f"{name}: {text(error.strerror)}"
    if type(error).__module__ == "builtins" and isinstance(error, _TELLING) and _is_ours(_raised_in(error.__traceback__)):
        return f"{name}: {text(str(error))}"
    return name


def trace(error: BaseException) -> str:
    """Frames without locals, cause first, each error as `said` says it."""
    return "\n".join(_told(error))


def _told(error: BaseException, seen: frozenset[int] = frozenset()) -> Iterator[str]:
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if behind is not None and id(behind) not in seen:
        yield from _told(behind, seen | {id(error)})
        yield "which led to:"
    # Without the line of source, because a literal there may be a value.
    yield from (f"  {at.filename}:{at.lineno} in {at.name}" for at in traceback.extract_tb(error.__traceback__))
    yield said(error)
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _told(inner, seen | {id(error)})


def _nested(value: Any, depth: int) -> Any:
    if depth >= _DEEPEST:
        return type(value).__name__
    if isinstance(value, dict):
        return {_key(key): clean(inner, depth + 1) for key, inner in value.items()}
    return [clean(inner, depth + 1) for inner in value]


def _key(key: Any) -> str:
    plain = clean(key, _DEEPEST)
    return plain if isinstance(plain, str) else str(plain)


def _scalar(value: Any) -> str:
    name = type(value).__name__
    match value:
        case bytes() | bytearray() | memoryview():
            found = f"[{memoryview(value).nbytes} bytes]"
        case BaseException():
            found = said(value)
        case UUID() | PurePath() | timedelta():
            found = text(str(value))
        case date() | time():
            found = value.isoformat()
        case _ if name in _SECRET:
            found = _REDACTED
        case _:
            found = text(_address(value)) if name in _URLS else name
    return found


def _address(value: Any) -> str:
    """SQLAlchemy's URL hides its password by itself, httpx's and yarl's are their text."""
    show = getattr(value, "render_as_string", None)
    return str(show(hide_password=True)) if callable(show) else str(value)


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in _OURS


def _raised_in(frames: TracebackType | None) -> str:
    """The module of the innermost frame."""
    module = ""
    while frames is not None:
        module, frames = str(frames.tb_frame.f_globals.get("__name__", "")), frames.tb_next
    return module
