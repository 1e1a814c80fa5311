"""Everything that can go wrong, drawn; beside each leaf the caller's duty.

    WorkerError                what happened · whose fault · what to do
    ├─ Retryable               may pass               back off, costs an attempt
    │   ├─ BackendBusy         throttled, no room
    │   └─ Unreachable         no answer              exit code 3 on the command line
    ├─ Fatal                   will never pass        undo (or block, where there is no undo)
    │   ├─ Refused             blame: tenant          the request cannot be granted as it stands
    │   ├─ Misconfigured       blame: operator        settings, credentials, permissions
    │   └─ Foreign             blame: operator        a name is taken by something not ours
    ├─ Fenced                  not mine any more      write nothing, stop quietly
    ├─ JournalLost             a decision may or may not be written: the process leaves, the rows decide
    └─ CryptoError
        ├─ UnknownKey          blame: operator        no key here opens it
        ├─ WrongKey            blame: operator        authentication failed under the only key there is
        ├─ Tampered            blame: internal        malformed bytes; never retried, page someone
        └─ UnknownVersion      blame: operator        written by a newer release

`message` and `hint` are shown to people and stored with the job: they never hold a secret, a
token, a URL with credentials or output of a tenant's program. The cause goes to the log.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Blame(StrEnum):
    """Who has to act."""

    TENANT = "tenant"
    OPERATOR = "operator"
    PROVIDER = "provider"
    INTERNAL = "internal"


class WorkerError(Exception):
    """Base of all. `code` and `detail` are for programs; `message` reads "verb noun: reason"."""

    code = "internal"
    blame = Blame.INTERNAL

    def __init__(self, message: str, *, hint: str = "", code: str | None = None, detail: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = dict(detail or {})
        if code is not None:
            self.code = code


class Retryable(WorkerError):
    """It failed and may pass. `after` (seconds) is the peer's own wish, when it said one."""

    code = "retryable"
    blame = Blame.PROVIDER

    def __init__(self, message: str, *, hint: str = "", code: str | None = None, after: float | None = None) -> None:
        super().__init__(message, hint=hint, code=code)
        self.after = after


class BackendBusy(Retryable):
    """Throttled or out of room."""

    code = "backend_busy"


class Unreachable(Retryable):
    """A dependency did not answer."""

    code = "unreachable"


class Fatal(WorkerError):
    """It will never pass as it stands."""

    code = "fatal"


class Refused(Fatal):
    """The request itself cannot be granted."""

    code = "refused"
    blame = Blame.TENANT


class Misconfigured(Fatal):
    """This installation's settings, credentials or permissions are at fault."""

    code = "misconfigured"
    blame = Blame.OPERATOR


class Foreign(Fatal):
    """A name that we need belongs to something that is not ours; it is never deleted."""

    code = "foreign"
    blame = Blame.OPERATOR


class Fenced(WorkerError):
    """Somebody else holds the subject now: write nothing more."""

    code = "fenced"


class JournalLost(WorkerError):
    """Our own database did not say whether it took a decision. Guessing could do a step twice, so the process leaves."""

    code = "journal_lost"


class CryptoError(WorkerError):
    """Sealing or opening failed. Never retried by itself."""

    code = "crypto"
    blame = Blame.OPERATOR


class UnknownKey(CryptoError):
    """No key of this installation is the one that wrapped it."""

    code = "unknown_key"


class WrongKey(CryptoError):
    """Authentication failed: the key is another one, or the bytes were changed."""

    code = "wrong_key"


class Tampered(CryptoError):
    """The bytes cannot be what the format says."""

    code = "tampered"
    blame = Blame.INTERNAL


class UnknownVersion(CryptoError):
    """Written in a format that this release does not know: upgrade the worker."""

    code = "unknown_version"
