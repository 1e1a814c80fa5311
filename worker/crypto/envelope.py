"""Sealing and opening one payload: the only place where AES-256-GCM is called."""

import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from worker.crypto.keyring import StaticKey
from worker.crypto.wire import NONCE_BYTES, TAG_BYTES, BlobV1
from worker.errors import UnknownKey, UnknownVersion, WrongKey

#: Values of the column `encryption_version`. They are stored beside every blob: an interface, not a detail.
PLAIN: Final = 0
STATIC: Final = 1


def seal(payload: bytes, key: StaticKey) -> bytes:
    """Seal `payload` into a version 1 blob (STATIC): 28 bytes longer, different each time."""
    nonce = os.urandom(NONCE_BYTES)
    sealed = AESGCM(key.reveal()).encrypt(nonce, payload, None)
    return bytes(BlobV1(nonce, sealed[:-TAG_BYTES], sealed[-TAG_BYTES:]))


def open_sealed(blob: bytes, version: int, key: StaticKey | None) -> bytes:
    """Open a blob of that version. Version 0 comes back as it is, and needs no key.

    Raises UnknownVersion, UnknownKey (version 1 and no key), Tampered (too short) or WrongKey.
    """
    if version == PLAIN:
        return blob
    if version != STATIC:
        raise UnknownVersion(f"open secret: version {version} is not known to this release", hint="upgrade the worker")
    parts = BlobV1.parse(blob)
    if key is None:
        raise UnknownKey(
            "open secret: it is sealed and there is no key", hint="set SECRETS_ENCRYPTION_KEY to the key that sealed it"
        )
    return _open_v1(parts, key)


def _open_v1(parts: BlobV1, key: StaticKey) -> bytes:
    try:
        return AESGCM(key.reveal()).decrypt(parts.nonce, parts.ciphertext + parts.tag, None)
    except InvalidTag as error:
        # Not Tampered, because version 1 names no key: a changed key is by far the likelier of the two.
        raise WrongKey(
            "open secret: the key is another one, or the bytes were changed",
            hint="compare the fingerprint of SECRETS_ENCRYPTION_KEY with the one in the log of the worker that sealed it",
        ) from error
