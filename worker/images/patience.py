"""How long a build may take and be silent, in one object that git and the engine's stream are both held to."""

from collections.abc import Callable
from time import monotonic

from worker.errors import Retryable
from worker.ports import Stopping


class Patience:
    """Raises when it is over. Seconds; one build, one Patience; `moved` may be called from another thread."""

    def __init__(self, *, ceiling_s: float, stall_s: float, stopping: Stopping, beat: Callable[[], None]) -> None:
        self._began = self._moved = monotonic()
        self._ceiling_s = ceiling_s
        self._stopping = stopping
        self._beat = beat
        self.stall_s = stall_s

    @property
    def left_s(self) -> float:
        """Seconds to the ceiling, never below zero."""
        return max(0.0, self._began + self._ceiling_s - monotonic())

    def moved(self) -> None:
        """There was a sign of life."""
        self._moved = monotonic()

    def check(self) -> None:
        """Raise Retryable when the job must stop, the ceiling is reached or nothing moved for too long."""
        self._beat()
        if self._stopping():
            raise Retryable("build image: the job was asked to stop", code="build_abandoned", after=1.0)
        if not self.left_s:
            raise Retryable(
                f"build image: it took longer than {self._ceiling_s:g} s",
                hint="look at `molecule-worker images list`; MOLECULE_BUILD_CEILING_S allows more",
                code="build_ceiling",
            )
        if monotonic() - self._moved > self.stall_s:
            raise Retryable(
                f"build image: no output for {self.stall_s:g} s",
                hint="look at `molecule-worker images list`; MOLECULE_BUILD_STALL_GRACE_S allows more",
                code="build_stalled",
            )
