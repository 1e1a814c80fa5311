"""The world of the in-memory backend: a JSON file under a lock, so that it outlives a killed daemon as containers do."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from worker.backends.tiers import Reach
from worker.errors import Unreachable


class Fault(StrEnum):
    """What can be made to happen at the next call of a verb."""

    BUSY = "busy"  #: refused for lack of room, nothing happened
    LOST = "lost"  #: it happened, and the answer got lost
    START_FAILS = "start_fails"  #: created, could not be started
    DIES = "dies"  #: started, and crashes again and again
    UNKNOWN = "unknown"  #: no answer, nothing happened


@dataclass(slots=True)
class File:
    """One file in a volume."""

    text: str
    mode: int


@dataclass(slots=True)
class Volume:
    """A named volume with its files."""

    labels: dict[str, str]
    files: dict[str, File] = field(default_factory=dict)


@dataclass(slots=True)
class Container:
    """A container as an engine would describe it. Values of its environment are not kept: nothing here reads them."""

    id: str
    labels: dict[str, str]
    volumes: list[str]
    running: bool
    restarts: int = 0
    exit_code: int | None = None
    log: list[str] = field(default_factory=list)
    reach: Reach = field(default_factory=Reach)


@dataclass(slots=True)
class World:
    """Everything on the simulated host."""

    containers: dict[str, Container] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    faults: list[tuple[str, Fault]] = field(default_factory=list)  #: (verb, fault), first match first

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "World":
        """The world that `asdict` wrote."""
        return cls(
            containers={
                name: Container(**{**found, "reach": Reach(**found.get("reach", {}))})
                for name, found in stored["containers"].items()
            },
            volumes={
                name: Volume(found["labels"], {path: File(**file) for path, file in found["files"].items()})
                for name, found in stored["volumes"].items()
            },
            faults=[(verb, Fault(fault)) for verb, fault in stored["faults"]],
        )


class Host:
    """The file at `path`. Every question is a fresh read, every change is whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def now(self) -> World:
        """The world as it is. Raises Unreachable when it cannot be read: that is no proof of anything's absence."""
        with self._locked(fcntl.LOCK_SH):
            return self._load()

    @contextmanager
    def change(self) -> Iterator[World]:
        """The world to be changed; what is raised inside leaves it as it was."""
        with self._locked(fcntl.LOCK_EX):
            world = self._load()
            yield world
            self._store(world)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unreadable() from error
        try:
            fcntl.flock(lock, how)
            yield
        finally:
            os.close(lock)

    def _load(self) -> World:
        try:
            return World.of(json.loads(self.path.read_text()))
        except FileNotFoundError:
            return World()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable() from error

    def _store(self, world: World) -> None:
        # Beside it and then over it, because a process killed in mid-write must not take the world with it.
        fresh = self.path.with_name(f"{self.path.name}.new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(world), file)
        fresh.replace(self.path)


def _unreadable() -> Unreachable:
    return Unreachable("read simulated host: its file cannot be read", hint="remove it, and the simulated workspaces with it")
