"""The end of a build's output, bounded, because a build may print for ever and somebody wants to read how it failed."""

from collections import deque
from threading import Lock

from worker.images.redact import Redaction

LIMIT = 4 * 1024 * 1024  #: bytes of UTF-8 that are kept


class Tail:
    """The last 4 MiB of text. One thread writes while another reads."""

    def __init__(self, redact: Redaction, limit: int = LIMIT) -> None:
        self._redact = redact
        self._limit = limit
        self._lock = Lock()
        self._pieces: deque[str] = deque()
        self._bytes = 0
        self.written = 0  #: bytes ever written: it changes when there is something new

    def write(self, text: str) -> None:
        """Append; what is older than the limit falls off, piece by piece."""
        piece = _storable(text)
        size = len(piece.encode())
        with self._lock:
            self._pieces.append(piece)
            self._bytes += size
            self.written += size
            # One piece more than fits is kept, because the token could be cut in two at the front and pass unseen.
            while len(self._pieces) > 1 and self._bytes - len(self._pieces[0].encode()) > self._limit:
                self._bytes -= len(self._pieces.popleft().encode())

    def text(self) -> str:
        """Everything kept, without the token. Redacted as a whole, because a secret may span two writes."""
        with self._lock:
            whole = "".join(self._pieces)
        return self._redact(whole).encode()[-self._limit :].decode(errors="ignore")


def _storable(text: str) -> str:
    """Postgres stores neither NUL nor half of a surrogate pair, and build output may hold both."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")
