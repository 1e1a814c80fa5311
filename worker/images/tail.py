"""The end of a build's output, bounded, because a build may print for ever and somebody wants to read how it failed."""

from collections import deque
from threading import Lock

from worker.images.redact import Redaction

LIMIT = 4 * 1024 * 1024  #: bytes of UTF-8 that are kept
_MARGIN = 1024  # more than a token is long


class Tail:
    """The last 4 MiB of text. One thread writes while another reads."""

    def __init__(self, redact: Redaction, limit: int = LIMIT) -> None:
        self._redact = redact
        self._limit = limit
        self._lock = Lock()
        self._pieces: deque[str] = deque()
        self._bytes = 0
        self._cut = False
        self.written = 0  #: bytes ever written: it changes when there is something new

    def write(self, text: str) -> None:
        """Append; what is older than the limit falls off, piece by piece."""
        piece = _storable(text)
        size = len(piece.encode())
        with self._lock:
            self._pieces.append(piece)
            self._bytes += size
            self.written += size
            while self._bytes - len(self._pieces[0].encode()) > self._limit + _MARGIN:
                self._bytes -= len(self._pieces.popleft().encode())
                self._cut = True

    def text(self) -> str:
        """Everything kept, without the token. Redacted as a whole, because a secret may span two writes."""
        with self._lock:
            whole = self._redact("".join(self._pieces))
            # The front may hold the second half of a token, which no redaction would know.
            kept = whole[_MARGIN:] if self._cut else whole
        return kept.encode()[-self._limit :].decode(errors="ignore")


def _storable(text: str) -> str:
    """Postgres stores neither NUL nor half of a surrogate pair, and build output may hold both."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")
