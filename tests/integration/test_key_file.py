"""The key that is made where none is set: once, for everybody, for its owner's eyes only."""

import stat
import subprocess
import sys
from pathlib import Path
from threading import Barrier, Thread

import pytest
from structlog.testing import capture_logs

from worker.crypto import keyring
from worker.crypto.keyring import KEY_FILE, StaticKey, load, parse
from worker.domain import Secret
from worker.errors import Misconfigured

STARTS = """
import sys
from pathlib import Path
from worker.crypto.keyring import load
print("ready", flush=True)
sys.stdin.readline()
print(load(None, production=False, state_dir=Path(sys.argv[1])).fingerprint())
"""


def kept(folder: Path) -> StaticKey:
    return load(None, production=False, state_dir=folder)


def test_a_key_is_made_once_and_used_ever_after(tmp_path: Path) -> None:
    first = kept(tmp_path / "new" / "state")

    assert kept(tmp_path / "new" / "state") == first
    assert kept(tmp_path / "other") != first


def test_an_empty_setting_is_a_missing_one(tmp_path: Path) -> None:
    assert load(Secret(""), production=False, state_dir=tmp_path) == kept(tmp_path)


def test_the_key_file_is_for_its_owner_alone_and_alone_in_the_folder(tmp_path: Path) -> None:
    kept(tmp_path / "state")

    assert [file.name for file in (tmp_path / "state").iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((tmp_path / "state" / KEY_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_the_key_file_can_be_given_as_the_setting(tmp_path: Path) -> None:
    key = kept(tmp_path)

    assert parse(Secret((tmp_path / KEY_FILE).read_text())) == key


def test_a_key_that_is_set_leaves_no_file(tmp_path: Path) -> None:
    load(Secret("ab" * 32), production=False, state_dir=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_production_does_not_use_a_key_that_was_made_outside_of_it(tmp_path: Path) -> None:
    kept(tmp_path)

    with pytest.raises(Misconfigured, match="production"):
        load(None, production=True, state_dir=tmp_path)


def test_processes_that_start_at_once_have_the_same_key(tmp_path: Path) -> None:
    starts = [
        subprocess.Popen([sys.executable, "-c", STARTS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for start in starts:
        assert start.stdout is not None
        assert start.stdout.readline() == "ready\n"
    for start in starts:
        assert start.stdin is not None
        start.stdin.write("\n")
        start.stdin.flush()
    said = [start.communicate(timeout=30)[0].splitlines()[-1] for start in starts]

    assert set(said) == {kept(tmp_path).fingerprint()}


def test_threads_that_start_at_once_have_the_same_key(tmp_path: Path) -> None:
    for attempt in range(20):
        folder, barrier, found = tmp_path / str(attempt), Barrier(8), list[str]()

        def start(folder: Path = folder, barrier: Barrier = barrier, found: list[str] = found) -> None:
            barrier.wait()
            found.append(kept(folder).fingerprint())

        threads = [Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(found) == 8
        assert len(set(found)) == 1


def test_a_key_that_came_first_is_never_replaced(tmp_path: Path) -> None:
    class LateLook(type(tmp_path)):  # type: ignore[misc]  # the concrete class differs by platform
        """A path whose owner looked before another process made the file."""

        def exists(self) -> bool:
            return False

    first = kept(tmp_path)
    keyring._ensure_kept(LateLook(tmp_path / KEY_FILE))

    assert kept(tmp_path) == first
    assert [file.name for file in tmp_path.iterdir()] == [KEY_FILE]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    kept(tmp_path)
    (tmp_path / KEY_FILE).chmod(mode)

    with pytest.raises(Misconfigured, match="others"):
        kept(tmp_path)


@pytest.mark.parametrize("content", [b"", b"recognisable", b"\xff" * 40, b"A" * 2000])
def test_a_damaged_key_file_is_refused_and_neither_replaced_nor_shown(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / KEY_FILE
    file.touch(mode=0o600)
    file.write_bytes(content)

    with pytest.raises(Misconfigured, match="holds no key") as caught:
        kept(tmp_path)

    assert file.read_bytes() == content
    assert "recognisable" not in f"{caught.value!r} {caught.value.hint}"


def test_a_link_in_the_place_of_the_key_file_is_refused(tmp_path: Path) -> None:
    kept(tmp_path / "elsewhere")
    (tmp_path / KEY_FILE).symlink_to(tmp_path / "elsewhere" / KEY_FILE)

    with pytest.raises(Misconfigured, match="cannot be used"):
        kept(tmp_path)


def test_a_state_folder_that_cannot_be_used_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "state").touch()

    with pytest.raises(Misconfigured, match="state folder") as caught:
        kept(tmp_path / "state")

    assert "MOLECULE_WORKER_STATE_DIR" in caught.value.hint


def test_the_log_says_that_a_key_was_made_and_not_which(tmp_path: Path) -> None:
    with capture_logs() as lines:
        key = kept(tmp_path)
        kept(tmp_path)

    assert [line["log_level"] for line in lines] == ["warning"]
    assert lines[0]["key"] == key.fingerprint()
    text = (tmp_path / KEY_FILE).read_text().strip()
    assert text not in str(lines)
    assert key.reveal().hex() not in str(lines)
