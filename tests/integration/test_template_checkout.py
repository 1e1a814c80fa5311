import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest

from worker.domain import Secret
from worker.errors import Misconfigured, Retryable, Unreachable, WorkerError
from worker.forge import Fault, Forge
from worker.images.checkout import Checkout, Commit, checked_out
from worker.images.faults import TemplateFault
from worker.images.patience import Patience
from worker.images.template import parse_prefix
from worker.ports import Stopping

TOKEN = Secret("canary+token/0123456789abcdef")


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    made = Forge(tmp_path_factory.mktemp("forge"))
    yield made
    made.close()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\n")
    (folder / "nonce").write_text(uuid4().hex)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A build cache in which nothing may be left over."""
    folder = tmp_path / "cache"
    yield folder
    assert [path for path in folder.rglob("*") if path.parent != folder] == []


def go_on() -> bool:
    return False


def patience(*, stopping: Stopping = go_on, ceiling_s: float = 60, stall_s: float = 30) -> Patience:
    return Patience(ceiling_s=ceiling_s, stall_s=stall_s, stopping=stopping, beat=lambda: None)


def commit_of(forge: Forge, sha: str) -> Commit:
    return Commit(parse_prefix(forge.prefix).clone_url("langgraph"), "langgraph", sha)


def failure_of(forge: Forge, cache: Path, sha: str, held_to: Patience | None = None, token: Secret | None = None) -> WorkerError:
    with (
        pytest.raises(WorkerError) as caught,
        checked_out(cache, commit_of(forge, sha), token, held_to or patience(), lambda _: None),
    ):
        pass
    return caught.value


def test_exactly_the_commit_asked_for_arrives_when_main_has_moved(forge: Forge, files: Path, cache: Path) -> None:
    (files / "marker").write_text("first")
    first = forge.publish("langgraph", files)
    (files / "marker").write_text("second")
    assert forge.publish("langgraph", files) != first

    with checked_out(cache, commit_of(forge, first), None, patience(), lambda _: None) as checkout:
        assert (checkout.tree / "marker").read_text() == "first"
        assert checkout.scratch.parent == cache / "langgraph"
        assert checkout.scratch.name.startswith(f"{first[:12]}-")
        assert not (checkout.tree / ".git").exists()


def test_the_checkout_is_gone_when_its_user_fails(forge: Forge, files: Path, cache: Path) -> None:
    sha = forge.publish("langgraph", files)
    seen: list[Checkout] = []

    def interrupted() -> None:
        with checked_out(cache, commit_of(forge, sha), None, patience(), lambda _: None) as checkout:
            seen.append(checkout)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert not seen[0].scratch.exists()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("git", 404), (Misconfigured, "does not have it")),
        (Fault("git", 401), (Misconfigured, "refused")),
        (Fault("git", 403), (Misconfigured, "refused")),
        (Fault("git", 500), (Unreachable, "did not answer")),
        (Fault("git", 302, location="http://127.0.0.1:9/x"), (Unreachable, "did not answer")),
        (Fault("git", 200, b"nonsense"), (Retryable, "fetch template")),
    ],
)
def test_each_fault_of_the_git_server_is_an_error_of_its_kind(
    forge: Forge, files: Path, cache: Path, fault: Fault, expected: tuple[type[WorkerError], str]
) -> None:
    kind, words = expected
    sha = forge.publish("langgraph", files)

    with forge.misbehaving(fault):
        error = failure_of(forge, cache, sha)

    assert isinstance(error, kind)
    assert words in error.message
    assert not isinstance(error, TemplateFault)


def test_a_commit_that_does_not_exist_has_moved_away(forge: Forge, files: Path, cache: Path) -> None:
    forge.publish("langgraph", files)

    assert failure_of(forge, cache, "0123456789" * 4).code == "template_moved"


def test_a_wrong_token_is_refused_with_a_hint(tmp_path: Path, files: Path, cache: Path) -> None:
    private = Forge(tmp_path / "private", token=TOKEN)
    sha = private.publish("langgraph", files)

    for token in (None, Secret("wrong")):
        error = failure_of(private, cache, sha, token=token)
        assert error.code == "template_denied"
        assert "MOLECULE_GITEA_TOKEN" in error.hint
    with checked_out(cache, commit_of(private, sha), TOKEN, patience(), lambda _: None) as checkout:
        assert (checkout.tree / "Dockerfile").exists()
    private.close()


def test_a_redirect_never_receives_the_token(tmp_path: Path, files: Path, cache: Path, forge: Forge) -> None:
    private = Forge(tmp_path / "private", token=TOKEN)
    sha = private.publish("langgraph", files)
    before = len(forge.requests())
    elsewhere = f"{forge.prefix}langgraph.git/info/refs?service=git-upload-pack"

    with private.misbehaving(Fault("git", 302, location=elsewhere)):
        failure_of(private, cache, sha, token=TOKEN)

    assert len(forge.requests()) == before
    private.close()


@pytest.mark.parametrize(("limits", "code"), [({"ceiling_s": 0.5}, "build_ceiling"), ({"stall_s": 0.5}, "build_stalled")])
def test_a_slow_server_is_given_up(forge: Forge, files: Path, cache: Path, limits: dict[str, Any], code: str) -> None:
    sha = forge.publish("langgraph", files)

    with forge.misbehaving(Fault("git", delay_s=30)):
        error = failure_of(forge, cache, sha, patience(**limits))

    assert error.code == code
    assert not _running(str(cache))


def test_a_fetch_stops_when_the_job_stops(forge: Forge, files: Path, cache: Path) -> None:
    sha = forge.publish("langgraph", files)
    asked = Event()

    def stopping() -> bool:
        if _running(str(cache), "git-remote-http"):
            asked.set()
        return asked.is_set()

    began = monotonic()

    with forge.misbehaving(Fault("git", delay_s=30)):
        error = failure_of(forge, cache, sha, patience(stopping=stopping))

    assert monotonic() - began < 10
    assert error.code == "build_abandoned"
    assert not _running(str(cache))


def _running(*words: str) -> bool:
    """Is there a process whose argv or folder says that it is of this fetch?"""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            said = (entry / "cmdline").read_text() + str((entry / "cwd").readlink())
        except OSError:
            continue
        if all(word in said for word in words):
            return True
    return False


def test_a_cache_that_cannot_be_written_is_the_operator_s(tmp_path: Path, forge: Forge, files: Path) -> None:
    sha = forge.publish("langgraph", files)
    (tmp_path / "file").write_text("")

    assert failure_of(forge, tmp_path / "file", sha).code == "build_cache"


def test_the_clones_of_killed_workers_are_removed_and_young_ones_kept(tmp_path: Path, forge: Forge, files: Path) -> None:
    sha = forge.publish("langgraph", files)
    old, young = (tmp_path / "cache" / "langgraph" / name for name in ("old-1", "young-1"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    subprocess.run(["touch", "-d", "2 days ago", str(old)], check=True)

    with checked_out(tmp_path / "cache", commit_of(forge, sha), None, patience(), lambda _: None):
        pass

    assert (old.exists(), young.exists()) == (False, True)


def _plant(folder: Path, what: str) -> None:
    match what:
        case "absolute link":
            (folder / "passwd").symlink_to("/etc/passwd")
        case "link upwards":
            (folder / "sub").mkdir()
            (folder / "sub" / "up").symlink_to("../../outside")
        case "link through a link":
            (folder / "a" / "b" / "c").mkdir(parents=True)
            (folder / "a" / "b" / "c" / "keep").write_text("")
            (folder / "deep" / "er").mkdir(parents=True)
            (folder / "deep" / "er" / "up").symlink_to("../..")
            (folder / "a" / "b" / "c" / "out").symlink_to("../../../deep/er/up/../outside")
        case "Dockerfile is a link":
            (folder / "Dockerfile").unlink()
            (folder / "Dockerfile").symlink_to("nonce")
        case "no Dockerfile":
            (folder / "Dockerfile").unlink()
        case "config is not UTF-8":
            (folder / "config.yaml").write_bytes(b"\xff\xfe")
        case "config grows at checkout":
            (folder / "config.yaml").write_text("\n" * 30_000)
            (folder / ".gitattributes").write_text("config.yaml text eol=crlf\n")
        case "gitmodules":
            (folder / ".gitmodules").write_text('[submodule "x"]\n\tpath = x\n\turl = https://host/x\n')


@pytest.mark.parametrize(
    "what",
    [
        "absolute link",
        "link upwards",
        "link through a link",
        "Dockerfile is a link",
        "no Dockerfile",
        "config is not UTF-8",
        "config grows at checkout",
        "gitmodules",
    ],
)
def test_a_hostile_template_is_refused_as_the_template_s_fault(forge: Forge, files: Path, cache: Path, what: str) -> None:
    _plant(files, what)

    error = failure_of(forge, cache, forge.publish("langgraph", files))

    assert isinstance(error, TemplateFault)
    assert error.message.startswith("check template: ")


def test_a_submodule_is_refused(forge: Forge, files: Path, cache: Path) -> None:
    forge.publish("langgraph", files)
    bare = f"--git-dir={forge.repository('langgraph')}"
    tree = subprocess.run(["git", bare, "ls-tree", "main"], capture_output=True, text=True, check=True).stdout
    entry = f"160000 commit {'1' * 40}\tsub\n"
    made = subprocess.run(["git", bare, "mktree", "--missing"], input=tree + entry, capture_output=True, text=True, check=True)

    error = failure_of(forge, cache, forge.commit("langgraph", made.stdout.strip()))

    assert isinstance(error, TemplateFault)
    assert "submodule" in error.message


def test_a_link_inside_the_tree_is_let_through(forge: Forge, files: Path, cache: Path) -> None:
    (files / "sub").mkdir()
    (files / "sub" / "link").symlink_to("../nonce")
    (files / "root").symlink_to(".")
    sha = forge.publish("langgraph", files)

    with checked_out(cache, commit_of(forge, sha), None, patience(), lambda _: None) as checkout:
        assert (checkout.tree / "sub" / "link").is_symlink()
