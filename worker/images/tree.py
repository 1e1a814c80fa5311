"""What a template may consist of: decided from git's own listing before a single file is written to our disk."""

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from worker.images.faults import refusal

FILES_LIMIT: Final = 20_000
BYTES_LIMIT: Final = 256 * 1024 * 1024
#: 48 KiB are 64 KiB in base64, which is what an image's label may hold of it.
CONFIG_LIMIT: Final = 48 * 1024

_FILE = {"100644", "100755"}
_LINK = "120000"
_SUBMODULE = "160000"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of `git ls-tree`: `mode` in git's octal text, `size` in bytes."""

    path: str
    mode: str
    size: int

    @property
    def is_file(self) -> bool:
        """A regular file, executable or not."""
        return self.mode in _FILE

    @property
    def is_link(self) -> bool:
        """A symbolic link."""
        return self.mode == _LINK


def parse_listing(listing: bytes) -> tuple[Entry, ...]:
    """The output of `git ls-tree -r -z -l`. Bytes that are not UTF-8 are kept as surrogates, as the file system does."""
    entries = []
    for record in listing.split(b"\0")[:-1]:
        head, path = record.split(b"\t", 1)
        mode, _, _, size = head.split()
        entries.append(Entry(path.decode(errors="surrogateescape"), mode.decode(), 0 if size == b"-" else int(size)))
    return tuple(entries)


def refuse_hostile(entries: Sequence[Entry]) -> None:
    """Raise TemplateFault for a tree that must not become a build context."""
    if len(entries) > FILES_LIMIT:
        raise refusal(f"it has more than {FILES_LIMIT} files")
    if sum(entry.size for entry in entries) > BYTES_LIMIT:
        raise refusal(f"it is larger than {BYTES_LIMIT // 2**20} MiB")
    for entry in entries:
        if entry.mode == _SUBMODULE or posixpath.basename(entry.path).lower() == ".gitmodules":
            raise refusal("it has a submodule")
        if not entry.is_file and not entry.is_link:
            raise refusal("it has an entry that is neither a file nor a link")
    _refuse_dockerfile({entry.path: entry for entry in entries})


def _refuse_dockerfile(by_path: dict[str, Entry]) -> None:
    dockerfile, config = by_path.get("Dockerfile"), by_path.get("config.yaml")
    if dockerfile is None:
        raise refusal("it has no Dockerfile at its root", code="dockerfile_missing")
    if not dockerfile.is_file:
        raise refusal("its Dockerfile is not a regular file")
    if config and not config.is_file:
        raise refusal("its config.yaml is not a regular file")
    if config and config.size > CONFIG_LIMIT:
        raise refusal(f"its config.yaml is larger than {CONFIG_LIMIT // 1024} KiB")


def leads_out(path: str, target: str) -> bool:
    """Does a link at `path` with this text point out of the tree? Absolute targets always do."""
    if target.startswith("/"):
        return True
    end = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return end == ".." or end.startswith("../")
