"""git as a child that inherits nothing: no config, no helper, no prompt, no hook, and a token that only its environment knows."""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from worker.domain import Secret
from worker.errors import Misconfigured
from worker.images.faults import refusal
from worker.images.patience import Patience
from worker.images.redact import basic

_LOOK_S = 0.1  # how often a running git is looked at
_STDERR_LIMIT = 64 * 1024

_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "credential.helper": "",
    "protocol.allow": "never",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    # A redirect could carry the token's header to another host.
    "http.followRedirects": "false",
    "transfer.fsckObjects": "true",
    "gc.auto": "0",
    "maintenance.auto": "false",
}


class GitError(Exception):
    """git ended with a failure. `stderr` is for classifying, never for showing."""

    def __init__(self, stderr: str) -> None:
        super().__init__("git failed")
        self.stderr = stderr


@dataclass(frozen=True, slots=True)
class Git:
    """One repository in a scratch folder of ours; everything that git writes stays below it."""

    scratch: Path
    url: str
    token: Secret | None
    limit: int  #: bytes that the scratch folder may grow to

    @property
    def tree(self) -> Path:
        """The work tree, apart from the repository, so that no `.git` is in a build's context."""
        return self.scratch / "tree"

    def run(self, *arguments: str, patience: Patience) -> bytes:
        """Standard output. Raises GitError, what `patience` raises, or TemplateFault when the limit is passed."""
        out, err = self.scratch / "out", self.scratch / "err"
        program = _program()
        folders = (f"--git-dir={self.scratch / 'git'}", f"--work-tree={self.tree}")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            child = subprocess.Popen(
                [program, *folders, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=self.scratch,
                env=self._environment(program, patience),
                start_new_session=True,  # a group of its own, because git starts transports and they must end with it
            )
        try:
            self._watch(child, patience)
        finally:
            _end_group(child)
        if child.returncode:
            with err.open("rb") as stderr:
                raise GitError(stderr.read(_STDERR_LIMIT).decode(errors="replace"))
        return out.read_bytes()

    def _watch(self, child: subprocess.Popen[bytes], patience: Patience) -> None:
        seen = 0
        while True:
            try:
                child.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                patience.check()
            size = _size(self.scratch)
            if size != seen:
                seen = size
                patience.moved()
            if size > self.limit:
                raise refusal(f"it is larger than {self.limit // 2**20} MiB")
            if child.returncode is not None:
                return

    def _environment(self, program: str, patience: Patience) -> dict[str, str]:
        address = urlsplit(self.url)
        settings = {
            **_SETTINGS,
            f"protocol.{address.scheme}.allow": "always",
            "http.lowSpeedLimit": "1",
            "http.lowSpeedTime": str(max(1, int(patience.stall_s))),
        }
        if self.token:
            settings[f"http.{address.scheme}://{address.netloc}/.extraHeader"] = f"Authorization: Basic {basic(self.token)}"
        pairs = {
            f"GIT_CONFIG_{what}_{n}": text
            for n, pair in enumerate(settings.items())
            for what, text in zip(("KEY", "VALUE"), pair, strict=True)
        }
        return {
            "PATH": f"{Path(program).parent}{os.pathsep}{os.defpath}",
            "HOME": str(self.scratch),
            "LC_ALL": "C",  # because the failures are classified by their English text
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_COUNT": str(len(settings)),
            **pairs,
        }


def _program() -> str:
    program = shutil.which("git")
    if program is None:
        raise Misconfigured("fetch template: git is not installed", hint="install git 2.31 or later")
    return program


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill the group while its leader is not reaped yet: after that the number may belong to somebody else."""
    if child.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _size(folder: Path) -> int:
    """Bytes below the folder. Files come and go meanwhile, and one that went counts nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).lstat().st_size
            except FileNotFoundError:
                continue
    return total
