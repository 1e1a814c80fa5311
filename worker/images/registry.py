"""Registry mode before pulling exists: it says so, because building instead would hand out an image that nobody chose."""

from collections.abc import Collection

from worker.domain import Image
from worker.errors import Misconfigured
from worker.images.source import Source, refuse_unknown
from worker.ports import ImagePending, Stopping


class RegistryImages:
    """Implements `Images` for an installation that names a registry: every runtime is refused, in words."""

    def __init__(self, source: Source, runtimes: Collection[str]) -> None:
        self._source = source
        self._runtimes = frozenset(runtimes)

    def ensure(self, runtime: str, job_id: str, stopping: Stopping) -> Image | ImagePending:
        """Raise Refused for an unknown runtime, Misconfigured for every other. Never builds."""
        refuse_unknown(runtime, self._runtimes)
        raise Misconfigured(
            f"pull image of {runtime}: MOLECULE_IMAGE_REGISTRY is set, and pulling comes with a later release",
            hint="unset MOLECULE_IMAGE_REGISTRY to build workspace images on this host",
            code="registry_mode",
        )
