"""A kind of job: its machine, the args it takes, the subject it excludes others from, and where it runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from worker.engine.machine import BadMachine, Machine


@dataclass(frozen=True, slots=True)
class Arg:
    """One argument as `worker.enqueue` checks it: before anything is stored, in the database itself."""

    type: Literal["uuid", "text", "boolean"]
    required: bool = True
    default: Any = None

    def rule(self) -> dict[str, Any]:
        """The JSON that `worker.checked_args` reads."""
        return {"type": self.type, "required": self.required, "default": self.default}


@dataclass(frozen=True, slots=True)
class Kind:
    """An entry of the catalogue."""

    machine: Machine
    subject_prefix: str  #: `workspace:`, `org:` or `keys`
    subject_arg: str  #: the arg whose value follows the prefix
    args: Mapping[str, Arg]
    #: None: the queue of the workspace's own host. Any other kind has one of its own, named as itself, so that each can be
    #: given to processes of its own.
    queue: str | None
    supersedes: bool = False  #: ends whatever is live on its subject
    widens: Sequence[str] = field(default=())  #: boolean args that a second enqueue may turn on
    skippable: Sequence[str] = field(default=())  #: steps that an operator may skip on the way forward, at the price of a debt

    def __post_init__(self) -> None:
        """Refuse an entry that could never be enqueued."""
        if self.subject_arg not in self.args:
            raise BadMachine(f"{self.name}: subject arg {self.subject_arg} is not among its args")
        for name in self.skippable:
            if name not in self.machine.names:
                raise BadMachine(f"{self.name}: {name} cannot be skipped, there is no such step")
        for name in self.widens:
            if self.args[name].type != "boolean":
                raise BadMachine(f"{self.name}: only a boolean can be widened, {name} is not one")

    @property
    def name(self) -> str:
        """The stored name of the kind, e.g. `workspace.provision`."""
        return self.machine.kind

    def rules(self) -> dict[str, dict[str, Any]]:
        """All args in the shape of `worker.kinds.args`."""
        return {name: arg.rule() for name, arg in self.args.items()}


def own_queues(kinds: Iterable[Kind]) -> list[str]:
    """Queues of kinds that belong to no host, in the catalogue's order."""
    return list(dict.fromkeys(kind.queue for kind in kinds if kind.queue is not None))
