"""The folder of the embedded stack, as another terminal reads it."""

import os
import subprocess
from pathlib import Path

import pytest

from worker import stack


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack's folder, which this process's settings name, and nothing else of the stack."""
    for name in ("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MOLECULE_WORKER_STATE_DIR", str(tmp_path))
    stack.publish(tmp_path, {"DATABASE_URL": "postgresql:///theirs", "REDIS_URL": "redis://theirs/0"}, "fingerprint")
    return tmp_path


def test_only_what_works_in_the_folder_was_left_over_whatever_a_pid_file_says(tmp_path: Path) -> None:
    for name in ("postgres", "redis"):
        (tmp_path / name).mkdir()
    server = subprocess.Popen(["sleep", "600"], cwd=tmp_path / "redis")
    (tmp_path / "redis" / "redis.pid").write_text(f"{server.pid}\n")
    (tmp_path / "postgres" / "postmaster.pid").write_text(f"{os.getpid()}\nand more\n")
    try:
        assert stack.left_over(tmp_path) == {"redis": server.pid}
        with stack.reserved(tmp_path):
            assert stack.left_over(tmp_path) == {}
    finally:
        server.kill()
        server.wait()
    assert stack.left_over(tmp_path) == {}


def test_settings_are_those_of_the_running_stack_and_the_environment_stays_as_it_is(folder: Path) -> None:
    with stack.reserved(folder):
        found = stack.settings()

    assert found.database_url is not None
    assert found.database_url.get_secret_value() == "postgresql:///theirs"
    assert "DATABASE_URL" not in os.environ
    assert stack.settings().database_url is None


def test_what_is_set_here_wins_and_a_database_of_our_own_takes_nothing_of_the_stack(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stack.reserved(folder):
        monkeypatch.setenv("REDIS_URL", "redis://ours/0")
        mixed = stack.settings()
        monkeypatch.setenv("DATABASE_URL", "postgresql:///ours")
        monkeypatch.delenv("REDIS_URL")
        own = stack.settings()

    assert mixed.redis_url is not None
    assert mixed.redis_url.get_secret_value() == "redis://ours/0"
    assert mixed.database_url is not None
    assert own.redis_url is None
