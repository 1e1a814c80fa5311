import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from worker import body


@pytest.mark.parametrize(
    "text",
    [
        *(
            b"",
            b"{",
            b"[]",
            b"1",
            b'"x"',
            b"null",
            b'{"a": NaN}',
            b'{"a": Infinity}',
            b'{"a": -Infinity}',
            b'{"a": 1e999}',
            b"\xff{}",
        ),
        *('{"a": 1}'.encode("utf-16"), b"\xef\xbb\xbf{}", b'{"a":' + b"9" * 5000 + b"}", b"[" * 60000, b'{"a":' * 10000),
        *(b'{"a":' * 33 + b"1" + b"}" * 33, b'{"a":' + b"[" * 32 + b"]" * 32 + b"}"),
    ],
)
def test_anything_but_a_bounded_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(HTTPException) as caught:
        body.parse(text)
    assert caught.value.status_code == 400


def test_what_cannot_be_stored_becomes_the_sign_for_unreadable() -> None:
    assert body.parse(b'{"a\\u0000": ["\\ud800x", {"b": "\\u0000"}], "c": "\\ud83d\\ude00"}') == {
        "a\ufffd": ["\ufffdx", {"b": "\ufffd"}],
        "c": "\U0001f600",
    }


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_refusal(junk: bytes) -> None:
    with suppress(HTTPException):
        assert isinstance(body.parse(junk), dict)


def test_a_body_that_never_arrives_is_given_up() -> None:
    async def silence() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    request = Request({"type": "http", "headers": []}, silence)
    with pytest.raises(HTTPException) as caught:
        asyncio.run(body.read(request, seconds=0.01))
    assert caught.value.status_code == 408
