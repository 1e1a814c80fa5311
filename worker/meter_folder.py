"""Where the processes of one daemon count: a folder of small files in memory that all of them map, gone when they are."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time
from typing import Final

import structlog

log = structlog.get_logger()

#: The standard name, by which prometheus_client finds the folder.
VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_FOLDER: Final = "metrics"
#: Held by a daemon's parent and inherited by its children, so it is free when the last of them is gone, however it went.
_LOCK: Final = "lock"
_YOUNG_S: Final = 60.0


@contextmanager
def reserved(state_dir: Path) -> Iterator[Path]:
    """An empty folder for this daemon, below the state folder where that can be written to; removed at the end.

    What a killed daemon left is removed by the next one.
    """
    base = base_of(state_dir)
    try:
        base.mkdir(parents=True, exist_ok=True)
        _sweep(base)
        folder = Path(tempfile.mkdtemp(dir=base))
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="molecule-worker-metrics-"))
        log.info("metrics are counted elsewhere", folder=folder, reason=error.strerror)
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits for a neighbour's question, which takes an instant
        os.environ[VARIABLE] = str(folder)
        yield folder
    finally:
        os.environ.pop(VARIABLE, None)
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def base_of(state_dir: Path) -> Path:
    """Where the folders of this host's daemons are."""
    return state_dir / _FOLDER


def in_use(state_dir: Path) -> int:
    """How many daemons count there right now. Raises OSError where the folder cannot be read."""
    base = base_of(state_dir)
    return sum(_is_held(folder) for folder in base.iterdir()) if base.exists() else 0


def _sweep(base: Path) -> None:
    for folder in base.iterdir():
        # A young one may be another daemon's that has not locked it yet.
        if folder.is_dir() and folder.stat().st_mtime < time() - _YOUNG_S and not _is_held(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_held(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)
