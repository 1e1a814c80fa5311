"""How the text of a key is read, and that nothing shows it."""

import base64
import copy
import json
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.crypto.keyring import StaticKey, load, parse
from worker.domain import Secret
from worker.errors import Misconfigured

BYTES = bytes(range(200, 232))
BASE64 = base64.b64encode(BYTES).decode()
HEX = BYTES.hex()
NOWHERE = Path("/nowhere")
quick = settings(deadline=None, max_examples=40, database=None)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        pytest.param(BASE64, BYTES, id="base64"),
        pytest.param(BASE64 + "\n", BYTES, id="base64 and a line end"),
        pytest.param(BASE64[:20] + "\r\n" + BASE64[20:], BYTES, id="base64 over two lines"),
        pytest.param(HEX, BYTES, id="hex"),
        pytest.param(HEX.upper(), BYTES, id="hex in capitals"),
        pytest.param("00" * 32, bytes(32), id="hex that is base64 of 48 bytes, too"),
        pytest.param("raw key, 32 characters, no base64", None, id="raw of 33"),
        pytest.param("raw key: 32 characters, no base6", b"raw key: 32 characters, no base6", id="raw of 32"),
        pytest.param("ü" * 16, "ü".encode() * 16, id="raw, 16 characters that are 32 bytes"),
        pytest.param("ü" * 32, None, id="raw, 32 characters that are 64 bytes"),
        pytest.param("\udcff" * 32, b"\xff" * 32, id="raw, bytes that are no UTF-8"),
        pytest.param("\ud800" * 32, None, id="characters that no environment holds"),
        pytest.param("A" * 31 + "\n", b"A" * 31 + b"\n", id="raw of 32, no base64 without its line end"),
        pytest.param("A" * 32, None, id="32 characters that are base64 of 24 bytes"),
        pytest.param(" " + BASE64, None, id="a space before"),
        pytest.param(BASE64 + " ", None, id="a space behind"),
        pytest.param(HEX + "\n", None, id="hex and a line end"),
        pytest.param(HEX + " ", None, id="hex and a space"),
        pytest.param(HEX[:-1], None, id="63 hex digits"),
        pytest.param(HEX + "0", None, id="65 hex digits"),
        pytest.param(BASE64.rstrip("="), None, id="base64 without padding"),
        pytest.param(BASE64[:10] + "*" + BASE64[10:], None, id="base64 with a foreign character"),
        pytest.param(BASE64.replace("/", "_").replace("+", "-"), None, id="base64 for URLs"),
        pytest.param(base64.b64encode(BYTES[:16]).decode(), None, id="base64 of 16 bytes"),
        pytest.param(base64.b64encode(BYTES + b"x").decode(), None, id="base64 of 33 bytes"),
        pytest.param("", None, id="empty"),
        pytest.param("\n", None, id="a line end"),
    ],
)
def test_a_key_is_read_in_the_documented_order(text: str, key: bytes | None) -> None:
    if key is None:
        with pytest.raises(Misconfigured):
            parse(Secret(text))
    else:
        assert parse(Secret(text)).reveal() == key


def test_the_table_above_has_a_key_whose_base64_for_urls_differs() -> None:
    assert set(BASE64) & {"+", "/"}


@quick
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=4, max_size=80))
def test_a_refused_key_is_in_no_text_of_the_refusal(text: str) -> None:
    wrong = f"{text}~~"
    if len(wrong.encode()) == 32:
        wrong += "~"
    with pytest.raises(Misconfigured) as caught:
        parse(Secret(wrong))

    error = caught.value
    assert wrong not in f"{error} {error!r} {error.hint} {error.__cause__!r} {error.__context__!r}"


def test_a_refusal_says_which_forms_are_right() -> None:
    with pytest.raises(Misconfigured) as caught:
        parse(Secret("short"))

    assert all(word in caught.value.hint for word in ("64 hex", "base64", "32 raw"))


@pytest.mark.parametrize("text", [None, ""])
def test_production_refuses_to_start_without_a_key(text: str | None) -> None:
    with pytest.raises(Misconfigured, match="production"):
        load(None if text is None else Secret(text), production=True, state_dir=NOWHERE)


@pytest.mark.parametrize("production", [True, False])
def test_a_key_that_is_none_is_refused_everywhere(production: bool) -> None:
    with pytest.raises(Misconfigured, match="SECRETS_ENCRYPTION_KEY"):
        load(Secret("short"), production=production, state_dir=NOWHERE)


@pytest.mark.parametrize("production", [True, False])
def test_a_key_that_is_set_is_used_everywhere(production: bool) -> None:
    assert load(Secret(HEX), production=production, state_dir=NOWHERE) == StaticKey(BYTES)


def test_nothing_prints_a_key() -> None:
    key = StaticKey(b"recognise this key: 32 character")

    shown = f"{key} {key!r} {[key]} {key:}"

    assert "recognise" not in shown
    assert key.fingerprint() in shown


def test_a_key_is_neither_pickled_nor_copied_nor_written_as_json_nor_hashed() -> None:
    key = StaticKey(BYTES)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, json.dumps, hash, vars):
        with pytest.raises(TypeError):
            leak(key)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_cannot_be_made(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        StaticKey(bytes(length))


def test_a_fingerprint_tells_keys_apart_and_is_the_same_in_every_release() -> None:
    assert StaticKey(BYTES).fingerprint() == "f7906dd91bc5575d"
    assert StaticKey(BYTES).fingerprint() != StaticKey(bytes(32)).fingerprint()


@quick
@given(key=st.binary(min_size=32, max_size=32))
def test_a_fingerprint_is_16_hex_digits_that_are_no_part_of_the_key(key: bytes) -> None:
    mark = StaticKey(key).fingerprint()

    assert re.fullmatch(r"[0-9a-f]{16}", mark)
    assert mark not in key.hex()


def test_two_keys_are_equal_when_their_bytes_are() -> None:
    assert StaticKey(BYTES) == StaticKey(BYTES)
    assert StaticKey(BYTES) != StaticKey(bytes(32))
    assert StaticKey(BYTES) != BYTES
