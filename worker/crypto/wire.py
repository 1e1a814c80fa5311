"""The bytes of a sealed blob, apart from cryptography, so that every bound stands in one place."""

from dataclasses import dataclass, field
from typing import Final, Self

from worker.errors import Tampered

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
#: A version 1 blob with an empty payload. There is no upper bound of ours, because Postgres ends a bytea at 1 GiB.
SHORTEST_V1: Final = NONCE_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True)
class BlobV1:
    """`nonce (12) | ciphertext (as long as the payload) | tag (16)`: no header, no length, no version byte.

    Raises Tampered when a part has a length that the format does not allow.
    """

    nonce: bytes
    ciphertext: bytes = field(repr=False)
    tag: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.nonce) != NONCE_BYTES or len(self.tag) != TAG_BYTES:
            raise Tampered("read sealed bytes: nonce or tag has a wrong length")

    @classmethod
    def parse(cls, blob: bytes) -> Self:
        """Take `blob` apart. Raises Tampered when it is too short to hold a nonce and a tag."""
        if len(blob) < SHORTEST_V1:
            raise Tampered(
                f"read sealed bytes: {len(blob)} bytes are too short, {SHORTEST_V1} is the least",
                hint="the row was cut or holds something else; set the secret again",
            )
        return cls(blob[:NONCE_BYTES], blob[NONCE_BYTES:-TAG_BYTES], blob[-TAG_BYTES:])

    def __bytes__(self) -> bytes:
        return self.nonce + self.ciphertext + self.tag
