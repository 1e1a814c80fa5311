"""What the steps of this installation's jobs can reach, put together from settings once per process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from config.settings import Runtimes
from worker.crypto.keyring import StaticKey
from worker.domain import Secret
from worker.ports import Compute, Images
from worker.store.cache import Cache


@dataclass(frozen=True, slots=True)
class World:
    """The ports of one worker process: one host of one backend, and what all of them share."""

    engine: Engine
    key: StaticKey
    compute: Compute
    images: Images
    cache: Cache
    runtimes: Runtimes
    platform_url: Callable[[], str]  #: where this host's workspaces register; asked late, because Docker's network may come late
    passthrough: Mapping[str, Secret]  #: host variables that every workspace receives
    saas: bool  #: whether tenants share the host
    answers: Callable[[], bool]  #: whether the backend's host can take work right now

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for questions; what it would write is rolled back."""
        with self.engine.connect() as connection:
            yield connection

    def queues(self) -> Sequence[str]:
        """The queues of this host, none while its backend does not answer: its jobs wait for it there."""
        return [f"{self.compute.name}.{self.compute.host}"] if self.answers() else []
