"""Exactly one commit of a template, on disk for the time of a build and gone afterwards."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from worker.domain import Secret
from worker.errors import BackendBusy, Misconfigured, Retryable, Unreachable, WorkerError
from worker.images.faults import of_disk, refusal
from worker.images.git import Git, GitError
from worker.images.patience import Patience
from worker.images.tree import BYTES_LIMIT, CONFIG_LIMIT, Entry, leads_out, parse_listing, refuse_hostile

#: Pack, work tree, listing and context side by side.
SCRATCH_LIMIT: Final = 4 * BYTES_LIMIT
_LEFT_OVER_S: Final = 6 * 3600  # far beyond any ceiling: whoever made it was killed

_gone = partial(Retryable, "fetch template: its head moved away meanwhile", code="template_moved", after=1.0)
_denied = partial(
    Misconfigured,
    "fetch template: the git server refused",
    hint="set MOLECULE_GITEA_TOKEN to a token that may read it",
    code="template_denied",
)
_absent = partial(
    Misconfigured,
    "fetch template: the git server does not have it",
    hint="mirror it, or set MOLECULE_GITEA_TOKEN",
    code="template_not_mirrored",
)
_silent = partial(
    Unreachable, "fetch template: the git server did not answer", hint="is the git server up, and reachable from here?"
)
_full = partial(
    BackendBusy, "fetch template: the disk is full", hint="make room below MOLECULE_LOCAL_BUILD_CACHE", code="disk_full"
)
_broken = partial(refusal, "git's own check refused an object in it")

#: What git says (in the C locale, lower case) → what it means. The first that fits counts.
_MEANINGS: tuple[tuple[str, Callable[[], WorkerError]], ...] = (
    ("no space left on device", _full),
    ("not our ref", _gone),
    ("unadvertised object", _gone),
    ("couldn't find remote ref", _gone),
    ("authentication failed", _denied),
    ("could not read username", _denied),
    ("could not read password", _denied),
    ("error: 401", _denied),
    ("error: 403", _denied),
    ("error: 404", _absent),
    ("repository not found", _absent),
    ("not found", _absent),
    ("error in object", _broken),
    ("fsck error", _broken),
    ("invalid path", partial(refusal, "it has a path that git refuses")),
    ("unable to access", _silent),
    ("could not resolve host", _silent),
    ("failed to connect", _silent),
    ("timed out", _silent),
    ("early eof", _silent),
    ("hung up unexpectedly", _silent),
    ("rpc failed", _silent),
)


@dataclass(frozen=True, slots=True)
class Checkout:
    """A checked tree on disk, and its config.yaml when it has one."""

    tree: Path
    scratch: Path
    config: str | None


@dataclass(frozen=True, slots=True)
class Commit:
    """What to fetch: a commit that was looked up, 40 hex digits."""

    url: str
    runtime: str
    sha: str


@contextmanager
def checked_out(
    cache: Path, commit: Commit, token: Secret | None, patience: Patience, write: Callable[[str], None]
) -> Iterator[Checkout]:
    """Fetch exactly that commit, check it, hand it out, remove it. `write` receives what git said of a failure."""
    scratch = _scratch(cache, commit)
    try:
        try:
            checkout = _fetched(Git(scratch, commit.url, token, SCRATCH_LIMIT), commit, patience)
        except GitError as error:
            write(error.stderr)
            raise _meaning(error.stderr) from error
        except OSError as error:
            raise of_disk(error) from error
        yield checkout
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch(cache: Path, commit: Commit) -> Path:
    parent = cache / commit.runtime
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_left_over(parent)
        scratch = Path(tempfile.mkdtemp(prefix=f"{commit.sha[:12]}-", dir=parent))
        (scratch / "tree").mkdir()
    except OSError as error:
        raise of_disk(error) from error
    return scratch


def _remove_left_over(parent: Path) -> None:
    """Clones of workers that were killed. By age, because a young one may be in use by another worker."""
    for folder in parent.iterdir():
        try:
            old = time.time() - folder.lstat().st_mtime > _LEFT_OVER_S
        except FileNotFoundError:
            continue
        if old and folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _fetched(git: Git, commit: Commit, patience: Patience) -> Checkout:
    git.run("init", "--quiet", "--template=", patience=patience)
    # -- before what comes from outside; the commit and not `main`, because main may have moved since the look-up
    git.run("fetch", "--quiet", "--depth=1", "--no-tags", "--", commit.url, commit.sha, patience=patience)
    got = git.run("rev-parse", "--verify", "FETCH_HEAD^{commit}", patience=patience).decode().strip()
    if got != commit.sha:
        raise Retryable("fetch template: another commit arrived than was asked for", code="template_moved")
    entries = parse_listing(git.run("ls-tree", "-r", "-z", "-l", "--full-tree", commit.sha, patience=patience))
    refuse_hostile(entries)
    git.run("checkout", "--quiet", "--force", "--detach", commit.sha, patience=patience)
    _refuse_links(git.tree, entries)
    return Checkout(git.tree, git.scratch, _config(git.tree))


def _refuse_links(tree: Path, entries: tuple[Entry, ...]) -> None:
    """No link leads out, neither by its own text nor through other links."""
    root = os.path.realpath(tree)
    for entry in entries:
        if not entry.is_link:
            continue
        link = tree / entry.path
        end = os.path.realpath(link)
        if leads_out(entry.path, str(link.readlink())) or not f"{end}{os.sep}".startswith(f"{root}{os.sep}"):
            raise refusal("it has a link that leads out of it")


def _config(tree: Path) -> str | None:
    path = tree / "config.yaml"
    if not path.exists():
        return None
    content = path.read_bytes()
    if len(content) > CONFIG_LIMIT:  # again, because attributes can make a file grow at checkout
        raise refusal(f"its config.yaml is larger than {CONFIG_LIMIT // 1024} KiB")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise refusal("its config.yaml is not UTF-8") from error


def _meaning(stderr: str) -> WorkerError:
    said = stderr.lower()
    for words, error in _MEANINGS:
        if words in said:
            return error()
    return Retryable("fetch template: git failed", hint="what it said is in the build's log", code="template_fetch")
