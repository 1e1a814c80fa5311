"""Writes the archives that put files into a container, so that no file name ever meets a shell."""

import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

from worker.errors import Refused

TOKEN_FILE: Final = ".auth_token"  # noqa: S105 -- the file's name, not a token


def refuse_path(path: str) -> None:
    """Raise Refused unless `path` names a file strictly below the folder that it is put into."""
    parts = PurePosixPath(path)
    plain = path == str(parts) and path not in {"", "."}
    if not plain or parts.is_absolute() or ".." in parts.parts or "\0" in path:
        raise Refused(
            "put files: a file's name leads out of its folder", hint="use plain relative names without `..`", code="file_name"
        )


def mode_of(path: str) -> int:
    """Permissions of a file: the token is its owner's alone."""
    return 0o600 if path == TOKEN_FILE else 0o644


def bytes_of(path: str, text: str) -> bytes:
    """The file's content. Raises Refused for text that UTF-8 cannot carry; never shows it."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        # The cause would show the text.
        raise Refused(f"put files: {path} is not UTF-8 text", hint="store the file again", code="file_text") from None


def archive(files: Mapping[str, str], *, now: float) -> bytes:
    """A tar of `files` (path → text), owned by root, with the folders they need.

    `now` (seconds since the epoch) becomes their time of change, because programs reload a file when its time grows.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in _folders(files):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, int(now)
            tar.addfile(entry)
        for path in sorted(files):
            refuse_path(path)
            content = bytes_of(path, files[path])
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode, entry.mtime = len(content), mode_of(path), int(now)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _folders(files: Mapping[str, str]) -> Iterator[str]:
    """The parents of all files, outer ones first."""
    parents = {str(parent) for path in files for parent in PurePosixPath(path).parents}
    return iter(sorted(parents - {".", "/"}))
