"""What a step may ask of the world. Small protocols, one implementation each in production and a faithful fake."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.domain import Handle, Image, Observation, Thing, WorkspaceSpec

#: Asked between two waits of a long effect; True when the job must stop at its next boundary.
Stopping = Callable[[], bool]


class Compute(Protocol):
    """One host of one backend. Every verb is safe to repeat; absence on destroy is success, narrowly.

    Raises `Retryable` (or `Unreachable`) when it may pass, `Refused`, `Misconfigured` or `Foreign` when not.
    """

    @property
    def name(self) -> str:
        """Docker | memory | ec2."""
        ...

    @property
    def host(self) -> str:
        """Which of the backend's hosts."""
        ...

    def plan(self, workspace_id: str, runtime: str, tier: int) -> Sequence[Thing]:
        """The things `ensure_storage` and `ensure` will make, by their deterministic names."""
        ...

    def ensure_storage(self, spec: WorkspaceSpec) -> None:
        """The workspace's volumes exist, labelled as this installation's."""
        ...

    def ensure_created(self, spec: WorkspaceSpec) -> str:
        """Exactly one container of that name exists, made from this spec, its files in place, not started; its handle.

        Whatever of ours bore the name before is gone. Apart from the start, because the token's hash must be
        committed before the agent can show the token.
        """
        ...

    def ensure_started(self, workspace_id: str) -> Handle:
        """What `ensure_created` made runs. Raises Refused, code `container_gone`, when it is not there."""
        ...

    def inspect(self, workspace_id: str) -> Observation:
        """One look. Never raises for an answer that is missing: that is `Presence.UNKNOWN`."""
        ...

    def destroy(self, workspace_id: str) -> None:
        """The container is gone or going. Raises when the backend refused or did not answer."""
        ...

    def destroy_storage(self, workspace_id: str, *, made_by: str | None = None) -> Sequence[str]:
        """Remove the volumes (only those that job `made_by` made, when given).

        Answers what still holds a volume, by name; empty when none is left.
        """
        ...

    def things(self, workspace_id: str | None = None) -> Sequence[Thing]:
        """A fresh listing by label of everything of this installation. Raises when it cannot be had."""
        ...

    def logs(self, workspace_id: str, tail: int) -> str:
        """The last `tail` lines of the container's output, for its owner's eyes only."""
        ...


@dataclass(frozen=True, slots=True)
class ImagePending:
    """Somebody is building it. `what` says who or how far, `after` (seconds) when to look again."""

    what: str
    after: float


class Images(Protocol):
    """Where a runtime's image comes from, for one host."""

    def ensure(self, runtime: str, job_id: str, stopping: Stopping) -> Image | ImagePending:
        """The image is present on the host, or somebody is on it."""
        ...
