"""The one place that decides where images come from, so that no call site compares strings to find out."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from worker.errors import Refused

#: No dot, no slash, no port: nobody can mistake it for a registry's host, so it is never pulled or pushed.
LOCAL_PREFIX: Final = "molecule-local"

_PLAIN = re.compile(r"[\w.-]{1,40}\Z", re.ASCII)


class Mode(StrEnum):
    """Built here or pulled. There is no third, and nothing falls from one to the other."""

    LOCAL = "local"
    REGISTRY = "registry"


@dataclass(frozen=True, slots=True)
class Source:
    """The decision. `prefix` is the registry as the operator wrote it, or `molecule-local`."""

    mode: Mode
    prefix: str


def resolve(registry: str | None) -> Source:
    """The source that MOLECULE_IMAGE_REGISTRY means.

    Unset and empty mean local. Anything else is taken as given, blanks and garbage too, because a
    mistake must show as a failing pull and not pass for "build it here".
    """
    if registry is None or registry == "":
        return Source(Mode.LOCAL, LOCAL_PREFIX)
    return Source(Mode.REGISTRY, registry)


def registry_reference(prefix: str, runtime: str) -> str:
    """What is pulled for a runtime, exactly as the platform spells it."""
    return f"{prefix}/workspace-template-{runtime}:latest"


def local_reference(runtime: str, sha: str) -> str:
    """The tag of a local build: the first 12 digits of the commit pin it."""
    return f"{LOCAL_PREFIX}/workspace-template-{runtime}:{sha[:12]}"


def refuse_unknown(runtime: str, known: Collection[str]) -> None:
    """Raise Refused unless `runtime` is, letter for letter, one that this release knows. Touches no network."""
    if runtime in known:
        return
    shown = f"{runtime!r} " if _PLAIN.match(runtime) else ""
    raise Refused(
        f"choose image: the runtime {shown}is not in the allow-list",
        hint=f"known runtimes: {', '.join(sorted(known))}",
        code="unknown_runtime",
    )
