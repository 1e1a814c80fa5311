"""The last line of defence for the git token: whatever text leaves this package passes here first."""

import base64
import re
from urllib.parse import quote

from worker.domain import Secret

#: The account name that goes with a token in Gitea's Basic authentication.
ACCOUNT = "oauth2"
_USERINFO = re.compile(r"(?<=://)[^/\s@]+@")
_MASK = "***"


def basic(token: Secret) -> str:
    """The credential of `Authorization: Basic`, which carries the token in base64."""
    return base64.b64encode(f"{ACCOUNT}:{token.reveal()}".encode()).decode()


class Redaction:
    """Replaces every spelling of the token that a program could print, and the user part of any URL."""

    def __init__(self, token: Secret | None) -> None:
        self._spellings = _spellings(token) if token else ()

    def __call__(self, text: str) -> str:
        """The text without the token. Without a token only the user parts of URLs are masked."""
        for spelling in self._spellings:
            text = text.replace(spelling, _MASK)
        return _USERINFO.sub(f"{_MASK}@", text)


def _spellings(token: Secret) -> tuple[str, ...]:
    plain = token.reveal()
    encoded = base64.b64encode(plain.encode()).decode()
    return tuple(sorted({plain, quote(plain, safe=""), encoded, encoded.rstrip("="), basic(token)}, key=len, reverse=True))
