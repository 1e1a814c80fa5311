"""Which command makes a worker serve a queue: a host's is served by a worker that goes by that host's name, and by no other."""

import shlex
from typing import Final

RUN: Final = "molecule-worker run"
#: What a host's queue begins with, and what has to be set for a worker that serves it.
_BACKENDS: Final = {"docker": "", "memory": "MOLECULE_BACKEND=memory "}


def host_of(queue: str) -> str | None:
    """The host whose queue it is; None for a queue of a kind."""
    backend, _, host = queue.partition(".")
    return host if backend in _BACKENDS and host else None


def command(queue: str) -> str:
    """It, and nothing else, on one line to be copied."""
    host = host_of(queue)
    if host is None:
        return f"{RUN} --queues {shlex.quote(queue)}"
    return f"{_BACKENDS[queue.partition('.')[0]]}MOLECULE_WORKER_DOCKER_HOST_NAME={shlex.quote(host)} {RUN}"


def advice(queue: str) -> str:
    """The command, and where it is to be run."""
    host = host_of(queue)
    return command(queue) if host is None else f"on the host {host}: {command(queue)}"
