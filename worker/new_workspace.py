"""What may be written into the row of a new workspace: refused here, before anything is stored.

Name and role end up in YAML, labels and environment variables, so what could break out of those never gets in.
"""

import posixpath
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from worker.domain import TIERS, parse_id
from worker.errors import Refused

ACCESS: Final = ("none", "read_only", "read_write")
_NAME_LIMIT: Final = 255
_ROLE_LIMIT: Final = 1000
_MODEL_LIMIT: Final = 100
_PATH_LIMIT: Final = 4096
_BANNED: Final = frozenset("{}[]|>*&!")
#: Control, surrogate, line and paragraph separator: what ends a line somewhere, or cannot be stored at all.
_BANNED_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
#: The platform's list; /root, because an entry point that chowns its workspace would take it; /run (the engine's socket) and the
#: other libraries, which are the same thing by another name.
_SYSTEM_FOLDERS: Final = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64"),
    *("/proc", "/root", "/run", "/sbin", "/sys", "/usr", "/var"),
)


@dataclass(frozen=True, slots=True)
class NewWorkspace:
    """What a person asks for."""

    name: str
    runtime: str
    tier: int
    role: str | None = None
    model: str | None = None  #: None: the runtime's default
    parent_id: str | None = None
    workspace_dir: str | None = None  #: a folder of the host; None: a named volume
    workspace_access: str = "none"  #: none | read_only | read_write


def refuse_unfit(wanted: NewWorkspace, runtimes: Collection[str]) -> None:
    """Raise Refused for the first fault of `wanted`. `runtimes` is the allow-list; a runtime is never coerced."""
    if not wanted.name.strip():
        raise _refused("name is required", "give the workspace a name")
    _check_text("name", wanted.name, _NAME_LIMIT, _BANNED)
    _check_text("role", wanted.role or "", _ROLE_LIMIT, _BANNED)
    _check_text("model", wanted.model or "", _MODEL_LIMIT, frozenset())
    if wanted.runtime not in runtimes:
        raise _refused("runtime is not one that may be provisioned", "one of " + ", ".join(sorted(runtimes)))
    if type(wanted.tier) is not int or wanted.tier not in TIERS:
        raise _refused("tier is not 1, 2, 3 or 4", "1 is sandboxed, 2 standard, 3 privileged, 4 has the whole host")
    if wanted.parent_id is not None:
        _check_id(wanted.parent_id)
    _check_folder(wanted.workspace_dir, wanted.workspace_access)


def _check_text(field: str, text: str, limit: int, banned: frozenset[str]) -> None:
    if len(text) > limit:
        raise _refused(f"{field} is longer than {limit} characters", "shorten it")
    if any(unicodedata.category(character) in _BANNED_CATEGORIES for character in text):
        raise _refused(f"{field} holds a line break or another control character", "write it on one line")
    if not banned.isdisjoint(text):
        raise _refused(f"{field} holds one of {{}}[]|>*&!", "leave these characters out")


def _check_id(parent_id: str) -> None:
    try:
        parse_id(parent_id)
    except ValueError as error:
        raise _refused("parent is not a UUID", "give the parent's whole id") from error


def _check_folder(folder: str | None, access: str) -> None:
    if access not in ACCESS:
        raise _refused("access is not none, read_only or read_write", "choose one of the three")
    if not folder:
        if access != "none":
            raise _refused(f"access {access} needs a workspace folder", "give the folder too")
        return
    _check_text("workspace folder", folder, _PATH_LIMIT, frozenset(":"))  # because a bind is written host:container:mode
    if not folder.startswith("/") or ".." in folder.split("/"):
        raise _refused("workspace folder is not an absolute path without ..", "give the whole path")
    plain = "/" + posixpath.normpath(folder).lstrip("/")
    if plain == "/" or any(plain == system or plain.startswith(system + "/") for system in _SYSTEM_FOLDERS):
        raise _refused("workspace folder belongs to the system", "choose a folder of your own, for example below /home")


def _refused(reason: str, hint: str) -> Refused:
    return Refused(f"create workspace: {reason}", hint=hint)
