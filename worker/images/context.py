"""The build context as one tar file: the client's half of a build, .dockerignore included, because the engine does not apply it."""

import errno
from pathlib import Path
from typing import IO

from docker.utils.build import create_archive, exclude_paths

from worker.errors import BackendBusy


def packed(tree: Path, target: Path) -> IO[bytes]:
    """Write the tree to `target` and hand it out at its beginning; the caller closes it. Raises BackendBusy on a full disk."""
    files = sorted(exclude_paths(str(tree), _ignored(tree), dockerfile="Dockerfile"))
    context = target.open("w+b")
    try:
        create_archive(str(tree), files=files, fileobj=context)
    except OSError as error:
        context.close()
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise BackendBusy(
                "pack template: the disk is full", hint="make room below MOLECULE_LOCAL_BUILD_CACHE", code="disk_full"
            ) from error
        raise
    except BaseException:
        context.close()
        raise
    return context


def _ignored(tree: Path) -> list[str]:
    path = tree / ".dockerignore"
    if not path.is_file():
        return []
    lines = (line.strip() for line in path.read_text(errors="replace").splitlines())
    return [line for line in lines if line and not line.startswith("#")]
