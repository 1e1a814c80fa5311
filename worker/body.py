"""A JSON object out of a request that nobody vouches for: bounded in bytes, seconds, depth and kinds of number."""

import asyncio
import json
import math
import re
from typing import Any, Final, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import Request

LIMIT_BYTES: Final = 64 * 1024
_SECONDS: Final = 10.0
_DIGITS: Final = 10  #: a longer Content-Length is too large, whatever it says
_DEPTH: Final = 32
#: What Postgres cannot store in text (NUL) or nobody can encode (half a surrogate pair) becomes the sign for "unreadable",
#: because an agent that reports broken output is alive all the same.
_UNREADABLE: Final = "\ufffd"
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


async def read(request: Request, *, seconds: float = _SECONDS) -> bytes:
    """The body. Raises HTTPException 413 over 64 KiB (announced or found on the way), 408 after `seconds`."""
    announced = request.headers.get("content-length", "0")
    if len(announced) > _DIGITS or (announced.isdecimal() and int(announced) > LIMIT_BYTES):
        raise _too_large()
    received = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                received += piece
                if len(received) > LIMIT_BYTES:
                    raise _too_large()
    except TimeoutError as error:
        raise HTTPException(408, "read body: it did not arrive in time") from error
    return bytes(received)


def parse(body: bytes) -> dict[str, Any]:
    """Pure: the JSON object, its text fit to be stored. Raises HTTPException 400 for anything else, without quoting it."""
    try:
        found = json.loads(body.decode("utf-8"), parse_float=_finite, parse_constant=_not_json)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "read body: it is not JSON") from error
    if not isinstance(found, dict):
        raise HTTPException(400, "read body: it is not a JSON object")
    clean: dict[str, Any] = _storable(found, _DEPTH)
    return clean


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _not_json(text)


def _not_json(text: str) -> NoReturn:
    raise ValueError(f"{text[:10]} is not a number")


def _storable(value: Any, depth: int) -> Any:
    if depth == 0:
        raise HTTPException(400, "read body: it is nested too deeply")
    if isinstance(value, dict):
        return {_text(key): _storable(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_storable(inner, depth - 1) for inner in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    return _UNSTORABLE.sub(_UNREADABLE, text)


def _too_large() -> HTTPException:
    # Without `Connection: close`, because that resets the connection under the answer; the server discards the rest.
    return HTTPException(413, f"read body: it is larger than {LIMIT_BYTES} bytes")
