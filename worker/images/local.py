"""Images that are built on this host from a template's current commit: looked up, found or built once, and pinned by it."""

import base64
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Final

import structlog
from docker import APIClient
from docker.errors import DockerException
from requests import RequestException
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from worker.domain import Image, Secret
from worker.errors import Unreachable, WorkerError
from worker.images import build
from worker.images.builds import BuildKey, Builds, Mine, Theirs
from worker.images.checkout import Checkout, Commit, checked_out
from worker.images.context import packed
from worker.images.patience import Patience
from worker.images.redact import Redaction
from worker.images.source import local_reference, refuse_unknown
from worker.images.tail import Tail
from worker.images.template import Templates
from worker.ports import ImagePending, Stopping

_log = structlog.get_logger()

#: Labels of what we build. Containers inherit them, so they are none that a listing of containers looks for.
LABEL: Final = "molecule.image."
_CONFIG = f"{LABEL}config"
_FLUSH_S: Final = 1.0
_GRACE_S: Final = 120.0  # verify, tag and the last log come after the ceiling


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: how long a build may take, and how long it may be silent."""

    ceiling_s: float
    stall_s: float


class LocalImages:
    """Implements `Images` for one Docker host. Made after the fork; `close` it at the end."""

    def __init__(
        self,
        engine: Engine,
        docker: Callable[[], APIClient],
        *,
        runtimes: Collection[str],
        prefix: str,
        token: Secret | None,
        cache: Path,
        platform: str,
        limits: Limits,
        installation: str,
        host: str,
        process_id: Callable[[], int],
    ) -> None:
        self._templates = Templates(prefix, token)
        self._builds = Builds(engine, longest_s=limits.ceiling_s + _GRACE_S)
        self._docker = docker
        self._idle: SimpleQueue[APIClient] = SimpleQueue()
        self._runtimes = frozenset(runtimes)
        self._prefix = prefix
        self._cache = cache
        self._platform = platform
        self._limits = limits
        self._installation = installation
        self._host = host
        self._process_id = process_id
        self._redact = Redaction(token)

    def close(self) -> None:
        """Give back every connection."""
        self._templates.close()
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                return

    def ensure(self, runtime: str, job_id: str, stopping: Stopping) -> Image | ImagePending:
        """The image of the template's current commit: found, built now, or pending while another worker builds it.

        Raises Refused (unknown runtime), Misconfigured (template or settings; remembered for ten minutes) or Retryable.
        """
        refuse_unknown(runtime, self._runtimes)
        sha = self._templates.head_sha(runtime)
        key = self.key(runtime, sha)
        found = self._present(key)
        if found:
            return found
        turn = self._builds.claim(key, self._process_id(), job_id)
        if isinstance(turn, Mine):
            return self._build_once(key, turn, stopping)
        age_s = turn.age_s if isinstance(turn, Theirs) else 0.0
        # A build's end wakes who waits, so looking again only covers the moment between this answer and its being stored.
        return ImagePending(
            f"another worker is building {runtime} at {sha[:12]} (build {key.text})", after=min(max(1.0, age_s / 10), 10.0)
        )

    def key(self, runtime: str, sha: str) -> BuildKey:
        """What names the build of this commit in `worker.builds`."""
        return BuildKey(runtime, sha, self._prefix, self._platform, build.BUILDER, self._host)

    def _present(self, key: BuildKey) -> Image | None:
        """The image on this host when it is what the key says, by its labels and not by its name alone."""
        with self._client() as client:
            found = build.inspected(client, local_reference(key.runtime, key.sha))
        labels = build.labels_of(found) if found else {}
        if any(labels.get(name) != value for name, value in self._pins(key).items()):
            return None
        try:
            return self._image(key, _decoded(labels.get(_CONFIG)), cache="hit")
        except ValueError:  # a damaged label is no image of ours: build it anew
            return None

    def _build_once(self, key: BuildKey, mine: Mine, stopping: Stopping) -> Image:
        """Build under the claim, and give the claim back in every case, with what there is to remember."""
        tail = Tail(self._redact)
        outcome: str | WorkerError = Unreachable("build image: the worker left it", code="build_abandoned")
        try:
            # Again, because the holder before us may have finished between our look and our claim.
            image = self._present(key) or self._build(key, self._patience(mine, tail, stopping), tail)
            outcome = image.reference
        except WorkerError as error:
            outcome = error
            raise
        finally:
            self._builds.finish(mine, tail.text(), outcome)
        return image

    def _build(self, key: BuildKey, patience: Patience, tail: Tail) -> Image:
        """Fetch, build, verify, and name it last."""
        began = monotonic()
        repositories = self._templates.repositories
        commit = Commit(repositories.clone_url(key.runtime), key.runtime, key.sha)
        with checked_out(self._cache, commit, self._templates.token, patience, tail.write) as checkout, self._client() as client:
            order = build.Order(self._platform, self._labels(key, checkout))
            with packed(checkout.tree, checkout.scratch / "context.tar") as context:
                image_id = build.built(client, context, order, patience, tail)
            build.verify(client, image_id, order)
            build.tag(client, image_id, local_reference(key.runtime, key.sha))
            config = checkout.config
        _log.info("image built", runtime=key.runtime, sha=key.sha, host=key.host, seconds=round(monotonic() - began, 1))
        return self._image(key, config, cache="miss")

    def _patience(self, mine: Mine, tail: Tail, stopping: Stopping) -> Patience:
        flush = _Flush(self._builds, mine, tail)
        return Patience(ceiling_s=self._limits.ceiling_s, stall_s=self._limits.stall_s, stopping=stopping, beat=flush)

    def _pins(self, key: BuildKey) -> dict[str, str]:
        """The labels that decide whether an image is the one of this key."""
        parts = {"runtime": key.runtime, "sha": key.sha, "platform": key.platform, "builder": key.builder}
        return {f"{LABEL}{name}": value for name, value in parts.items()}

    def _labels(self, key: BuildKey, checkout: Checkout) -> dict[str, str]:
        labels = {**self._pins(key), f"{LABEL}installation": self._installation}
        if checkout.config is not None:
            labels[_CONFIG] = base64.b64encode(checkout.config.encode()).decode()
        return labels

    def _image(self, key: BuildKey, config: str | None, *, cache: str) -> Image:
        origin = {"sha": key.sha, "builder": key.builder, "platform": key.platform, "cache": cache}
        return Image(local_reference(key.runtime, key.sha), config, origin)

    @contextmanager
    def _client(self) -> Iterator[APIClient]:
        """A client for one thread at a time; kept afterwards, because making one asks the engine for its version."""
        try:
            client = self._idle.get_nowait()
        except Empty:
            client = _opened(self._docker)
        try:
            yield client
        finally:
            self._idle.put(client)


class _Flush:
    """Writes the log about every second while it grows, more seldom when it is long, because each write stores all of it."""

    def __init__(self, builds: Builds, mine: Mine, tail: Tail) -> None:
        self._builds, self._mine, self._tail = builds, mine, tail
        self._due = monotonic() + _FLUSH_S
        self._written = 0

    def __call__(self) -> None:
        if monotonic() < self._due or self._tail.written == self._written:
            return
        self._written = self._tail.written
        log = self._tail.text()
        try:
            self._builds.write_log(self._mine, log)
        except SQLAlchemyError as error:  # because a log that cannot be stored right now must not end a build
            _log.warning("build log not stored", error=type(error).__name__)
        self._due = monotonic() + _FLUSH_S + len(log) / 2**20


def _opened(docker: Callable[[], APIClient]) -> APIClient:
    try:
        return docker()
    except (DockerException, RequestException) as error:
        raise Unreachable("open engine: Docker did not answer", hint="is Docker running, and may this user reach it?") from error


def _decoded(label: str | None) -> str | None:
    """The config of a label. Raises ValueError for one that we did not write."""
    return None if label is None else base64.b64decode(label, validate=True).decode()
