"""Which queues a process serves: of all that this release and this host have, those that its settings name."""

from collections.abc import Iterable

from config.celery import DEFAULT_QUEUE
from config.settings import Settings
from worker.engine.kinds import Kind, own_queues
from worker.errors import Misconfigured


def host_queue(settings: Settings) -> str:
    """The queue of workspaces that are placed on this host."""
    return f"{settings.backend}.{settings.docker_host}"


def served(settings: Settings, kinds: Iterable[Kind]) -> list[str]:
    """The queues of this process. Raises Misconfigured for a name that nothing is ever sent to.

    The default queue is always among them, because a producer's own message must be heard and stored by whoever is there.
    """
    known = list(dict.fromkeys((DEFAULT_QUEUE, host_queue(settings), *own_queues(kinds))))
    wanted = _wanted(settings)
    unknown = sorted(wanted - set(known))
    if unknown:
        said = f"read MOLECULE_WORKER_QUEUES: no queue is named {', '.join(unknown)}"
        raise Misconfigured(said, hint=f"this host has {', '.join(known)}")
    return [name for name in known if not wanted or name in wanted or name == DEFAULT_QUEUE]


def serves_host(settings: Settings) -> bool:
    """Whether the host's own queue is among them."""
    wanted = _wanted(settings)
    return not wanted or host_queue(settings) in wanted


def _wanted(settings: Settings) -> set[str]:
    return {name.strip() for name in settings.queues.split(",") if name.strip()}
