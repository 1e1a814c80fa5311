"""The image of a workspace that is simulated: nothing is built, and its name says so."""

from collections.abc import Collection

from worker.domain import Image
from worker.images.source import refuse_unknown
from worker.ports import ImagePending, Stopping


class SimulatedImages:
    """Goes with the in-memory backend; implements `worker.ports.Images`."""

    def __init__(self, runtimes: Collection[str]) -> None:
        self._runtimes = frozenset(runtimes)

    def ensure(self, runtime: str, job_id: str, stopping: Stopping) -> Image | ImagePending:
        """An image that exists in name only; the allow-list holds all the same."""
        refuse_unknown(runtime, self._runtimes)
        return Image(f"simulated/workspace-template-{runtime}:none")
