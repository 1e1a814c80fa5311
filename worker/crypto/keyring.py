"""This installation's static key: how its text is read, where it comes from, and that nothing ever shows it."""

import base64
import binascii
import hmac
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Final, NoReturn

import structlog

from worker.domain import Secret
from worker.errors import Misconfigured

KEY_BYTES: Final = 32
KEY_FILE: Final = "secrets_encryption_key"
_HEX: Final = re.compile(r"[0-9a-fA-F]{64}")
_FORMS: Final = (
    "64 hex digits, or base64 of exactly 32 bytes (`openssl rand -base64 32`), or 32 raw characters; no spaces around it"
)

log = structlog.get_logger()


class StaticKey:
    """32 bytes that only `reveal()` gives away: no useful repr, str, pickle, copy or hash."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"make key: {KEY_BYTES} bytes are needed")
        self._key = key

    def reveal(self) -> bytes:
        """Give the key itself, to the envelope. Search for this name to see every place that reads it."""
        return self._key

    def fingerprint(self) -> str:
        """16 hex digits that tell two keys apart, safe to log: an HMAC under the key, so they lead back to no random key."""
        return hmac.digest(self._key, b"molecule-worker static key fingerprint", "sha256")[:8].hex()

    def __repr__(self) -> str:
        return f"StaticKey({self.fingerprint()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticKey) and hmac.compare_digest(other._key, self._key)

    __hash__ = None  # type: ignore[assignment]  # because equality is what is asked of a key, never membership

    def __reduce__(self) -> NoReturn:
        raise TypeError("pickle key: a StaticKey never leaves its process")


def parse(text: Secret) -> StaticKey:
    """Read what SECRETS_ENCRYPTION_KEY spells. Raises Misconfigured, which shows no part of the value.

    In this order: 64 hex digits; standard padded base64, which must then be of 32 bytes; 32 raw bytes.
    """
    key = _spelled(text.reveal())
    if key is None:
        raise Misconfigured("read SECRETS_ENCRYPTION_KEY: it is not a key of 32 bytes", hint=_FORMS)
    return StaticKey(key)


def load(settings_key: Secret | None, production: bool, state_dir: Path) -> StaticKey:
    """Find the installation's key: the one that is set, else, outside production, the one kept in `state_dir`.

    Raises Misconfigured: in production without a key, and anywhere for a key that is not one.
    """
    if settings_key:
        return parse(settings_key)
    if production:
        raise Misconfigured("start worker: SECRETS_ENCRYPTION_KEY is not set, and production never runs without", hint=_FORMS)
    path = state_dir / KEY_FILE
    try:
        _ensure_kept(path)
        return _kept(path)
    except OSError as error:
        raise Misconfigured(
            "keep generated key: the state folder cannot be used",
            hint="set SECRETS_ENCRYPTION_KEY, or point MOLECULE_WORKER_STATE_DIR at a folder of this user",
        ) from error


def _spelled(text: str) -> bytes | None:
    """32 bytes, or None. Base64 of another length is no key, even where the text has 32 characters: the platform refuses it too."""
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    try:
        raw = text.encode("utf-8", "surrogateescape")  # because that is how the environment decoded it
    except UnicodeEncodeError:
        return None
    try:
        # Only CR and LF go, and the rest is validated, because Python would otherwise drop any foreign character.
        key = base64.b64decode(raw.translate(None, b"\r\n"), validate=True)
    except binascii.Error:
        key = raw
    return key if len(key) == KEY_BYTES else None


def _ensure_kept(path: Path) -> None:
    """Make the key file where there is none. Of processes that start at once the first `link` wins; only whole files are linked."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = StaticKey(secrets.token_bytes(KEY_BYTES))
    # mkstemp opens with O_EXCL and mode 0600.
    handle, draft = tempfile.mkstemp(prefix=f".{KEY_FILE}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(base64.b64encode(key.reveal()) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
        _sync_folder(path.parent)
        log.warning("generated a key, because SECRETS_ENCRYPTION_KEY is not set", path=str(path), key=key.fingerprint())
    except FileExistsError:
        log.debug("another process generated the key first", path=str(path))
    finally:
        Path(draft).unlink()


def _sync_folder(folder: Path) -> None:
    """Let the new name survive a power cut, because what is sealed under a lost key is lost."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _kept(path: Path) -> StaticKey:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        content = file.read()
    if stat.S_IMODE(mode) & 0o077:
        raise Misconfigured("read generated key: others than its owner can read the file", hint=f"chmod 600 {path}")
    key = _spelled(content.decode("utf-8", "surrogateescape"))
    if key is None:
        # Never replaced by a new one, because whatever was sealed under it could not be opened again.
        raise Misconfigured(
            "read generated key: the file holds no key", hint=f"restore {path}; without it the stored secrets stay closed"
        )
    return StaticKey(key)
