"""The build context as one tar file: the client's half of a build, .dockerignore included, because the engine does not apply it."""

from pathlib import Path
from typing import IO

from docker.utils.build import create_archive, exclude_paths

from worker.images.faults import of_disk


def packed(tree: Path, target: Path) -> IO[bytes]:
    """Write the tree to `target` and hand that out for reading; the caller closes it. Raises what the disk's trouble means."""
    files = sorted(exclude_paths(str(tree), _ignored(tree), dockerfile="Dockerfile"))
    try:
        with target.open("wb") as context:
            create_archive(str(tree), files=files, fileobj=context)
        return target.open("rb")
    except OSError as error:
        raise of_disk(error) from error


def _ignored(tree: Path) -> list[str]:
    path = tree / ".dockerignore"
    if not path.is_file():
        return []
    lines = (line.strip() for line in path.read_text(errors="replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
