"""Sealing and opening: what the platform wrote opens, what was changed never does."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.crypto.envelope import PLAIN, STATIC, open_sealed, seal
from worker.crypto.keyring import StaticKey
from worker.crypto.wire import SHORTEST_V1, BlobV1
from worker.errors import Tampered, UnknownKey, UnknownVersion, WrongKey

VECTORS = json.loads((Path(__file__).parent / "vectors" / "secret_blob_v1.json").read_text())
KEY = StaticKey(bytes(range(32)))
OTHER = StaticKey(bytes(range(1, 33)))
quick = settings(deadline=None, max_examples=30, database=None)
keys = st.binary(min_size=32, max_size=32).map(StaticKey)


def raw(vector: dict[str, str], field: str) -> bytes:
    return base64.b64decode(vector[f"{field}_b64"], validate=True)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_blob_that_the_platform_sealed_opens_to_its_plaintext(vector: dict[str, str]) -> None:
    opened = open_sealed(raw(vector, "blob"), int(vector["encryption_version"]), StaticKey(raw(vector, "key")))

    assert opened == raw(vector, "plaintext")


def test_the_vectors_hold_blobs_that_begin_with_the_byte_of_the_next_format_and_an_empty_payload() -> None:
    assert any(raw(vector, "blob")[0] == 0x02 for vector in VECTORS)
    assert any(raw(vector, "plaintext") == b"" for vector in VECTORS)


def test_the_first_byte_of_a_blob_decides_nothing() -> None:
    for first in range(256):
        nonce = bytes([first]) + b"\x00\xb8" * 5 + b"\x00"
        blob = nonce + AESGCM(KEY.reveal()).encrypt(nonce, b"value", None)

        assert open_sealed(blob, STATIC, KEY) == b"value"


@quick
@given(payload=st.binary(max_size=300), key=keys)
def test_what_was_sealed_opens_to_the_same_bytes(payload: bytes, key: StaticKey) -> None:
    assert open_sealed(seal(payload, key), STATIC, key) == payload


@quick
@given(payload=st.binary(max_size=300), key=keys)
def test_a_sealed_blob_is_nonce_then_ciphertext_and_tag_without_additional_data(payload: bytes, key: StaticKey) -> None:
    blob = seal(payload, key)

    assert len(blob) == len(payload) + SHORTEST_V1
    assert AESGCM(key.reveal()).decrypt(blob[:12], blob[12:], None) == payload


def test_no_two_blobs_share_a_nonce() -> None:
    assert len({seal(b"same", KEY)[:12] for _ in range(1000)}) == 1000


def test_any_flipped_bit_keeps_the_blob_closed() -> None:
    blob = seal(b"a payload", KEY)
    for bit in range(len(blob) * 8):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((WrongKey, Tampered)):
            open_sealed(bytes(changed), STATIC, KEY)


@quick
@given(payload=st.binary(max_size=300), key=keys, where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_keeps_any_blob_closed(payload: bytes, key: StaticKey, where: float, bit: int) -> None:
    blob = bytearray(seal(payload, key))
    blob[int(where * len(blob))] ^= 1 << bit

    with pytest.raises((WrongKey, Tampered)):
        open_sealed(bytes(blob), STATIC, key)


@pytest.mark.parametrize("end", ["front", "back"])
def test_a_cut_blob_stays_closed_at_every_length(end: str) -> None:
    blob = seal(b"a payload", KEY)
    for length in range(len(blob)):
        cut = blob[:length] if end == "back" else blob[len(blob) - length :]
        with pytest.raises(Tampered if length < SHORTEST_V1 else WrongKey):
            open_sealed(cut, STATIC, KEY)


def test_bytes_behind_the_tag_keep_the_blob_closed() -> None:
    with pytest.raises(WrongKey):
        open_sealed(seal(b"a payload", KEY) + b"\x00", STATIC, KEY)


def test_another_key_is_told_as_a_wrong_key() -> None:
    with pytest.raises(WrongKey):
        open_sealed(seal(b"a payload", KEY), STATIC, OTHER)


@pytest.mark.parametrize("key", [None, KEY])
def test_version_0_is_returned_as_it_is_with_and_without_a_key(key: StaticKey | None) -> None:
    assert open_sealed(b"\x02 plain", PLAIN, key) == b"\x02 plain"


def test_version_1_without_a_key_is_an_unknown_key() -> None:
    with pytest.raises(UnknownKey):
        open_sealed(seal(b"a payload", KEY), STATIC, None)


@pytest.mark.parametrize("version", [-1, 2, 3, 256])
def test_a_version_of_a_newer_release_asks_for_an_upgrade(version: int) -> None:
    with pytest.raises(UnknownVersion) as caught:
        open_sealed(seal(b"a payload", KEY), version, KEY)

    assert "upgrade" in caught.value.hint


@quick
@given(blob=st.binary(min_size=SHORTEST_V1, max_size=200))
def test_parsing_and_joining_a_blob_gives_the_same_bytes(blob: bytes) -> None:
    assert bytes(BlobV1.parse(blob)) == blob


@pytest.mark.parametrize(("nonce", "tag"), [(11, 16), (13, 16), (12, 15), (12, 17)])
def test_a_blob_with_parts_of_a_wrong_length_cannot_be_made(nonce: int, tag: int) -> None:
    with pytest.raises(Tampered):
        BlobV1(b"n" * nonce, b"", b"t" * tag)


def test_a_parsed_blob_does_not_print_its_ciphertext() -> None:
    assert "payload" not in repr(BlobV1(b"n" * 12, b"payload", b"t" * 16))
