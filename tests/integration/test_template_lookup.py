import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.domain import Secret
from worker.errors import Misconfigured, Retryable, Unreachable, WorkerError
from worker.forge import NAME, ORGANISATION, Fault, Forge
from worker.images.template import Templates

TOKEN = Secret("canary+token/0123456789abcdef")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "Dockerfile").write_text("FROM scratch\n")
    return folder


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[Forge]:
    made = Forge(tmp_path_factory.mktemp("forge"))
    made.publish("langgraph", files)
    yield made
    made.close()


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[Forge]:
    made = Forge(tmp_path_factory.mktemp("private"), token=TOKEN)
    made.publish("langgraph", files)
    yield made
    made.close()


def head_of(prefix: str, runtime: str = "langgraph", token: Secret | None = None, limit_s: float = 30) -> str:
    templates = Templates(prefix, token, limit_s=limit_s)
    try:
        return templates.head_sha(runtime)
    finally:
        templates.close()


def failure_of(prefix: str, runtime: str = "langgraph", token: Secret | None = None, limit_s: float = 30) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        head_of(prefix, runtime, token, limit_s)
    return caught.value


def test_the_head_costs_one_call(forge: Forge) -> None:
    before = len(forge.requests())

    assert head_of(forge.prefix) == forge.head("langgraph")
    assert [request.on for request in forge.requests()[before:]] == ["api"]


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault("api", 404), Misconfigured, "the template of langgraph is not mirrored"),
        (Fault("api", 401), Misconfigured, "refused (401)"),
        (Fault("api", 403), Misconfigured, "refused (403)"),
        (Fault("api", 400), Misconfigured, "answered 400"),
        (Fault("api", 302, location="https://elsewhere.invalid/"), Misconfigured, "answered 302"),
        (Fault("api", 429), Unreachable, "answered 429"),
        (Fault("api", 500), Unreachable, "answered 500"),
        (Fault("api", 200, b"<html>"), Retryable, "not a branch"),
        (Fault("api", 200, b"[" * 50_000), Retryable, "not a branch"),
        (Fault("api", 200, b"[]"), Retryable, "not a branch"),
        (Fault("api", 200, b'{"commit": {}}'), Retryable, "not a branch"),
        (Fault("api", 200, b'{"commit": {"id": 7}}'), Retryable, "not 40 hex digits"),
        (Fault("api", 200, b'{"commit": {"id": "main"}}'), Retryable, "not 40 hex digits"),
        (Fault("api", 200, json.dumps({"commit": {"id": "a" * 40 + "\n"}}).encode()), Retryable, "not 40 hex digits"),
        (Fault("api", 200, json.dumps({"commit": {"id": "--upload-pack=touch"}}).encode()), Retryable, "not 40 hex digits"),
        (Fault("api", 200, b" " * 65_537), Retryable, "larger than 64 KiB"),
    ],
)
def test_each_wrong_answer_is_an_error_of_its_kind(forge: Forge, fault: Fault, kind: type[WorkerError], words: str) -> None:
    with forge.misbehaving(fault):
        error = failure_of(forge.prefix)

    assert isinstance(error, kind)
    assert words in error.message
    assert ("MOLECULE_GITEA_TOKEN" in error.hint) or fault.status not in {401, 403}


def test_an_answer_of_exactly_the_limit_is_read(forge: Forge) -> None:
    answer = json.dumps({"commit": {"id": "a" * 40}}).encode()

    with forge.misbehaving(Fault("api", 200, answer.ljust(65_536))):
        assert head_of(forge.prefix) == "a" * 40


def test_a_slow_answer_is_given_up(forge: Forge) -> None:
    with forge.misbehaving(Fault("api", delay_s=5)):
        error = failure_of(forge.prefix, limit_s=0.2)

    assert isinstance(error, Unreachable)
    assert "no answer in time" in error.message


def test_a_runtime_without_a_repository_is_not_mirrored(forge: Forge) -> None:
    error = failure_of(forge.prefix, "hermes")

    assert error.code == "template_not_mirrored"
    assert "hermes" in error.message


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("https://127.0.0.1:{port}/o/t-", "TLS failed"),
        ("http://127.0.0.1:9/o/t-", "no connection"),
        ("https://no-such-host.invalid/o/t-", "does not resolve"),
    ],
)
def test_a_server_that_cannot_be_talked_to_is_unreachable(forge: Forge, prefix: str, words: str) -> None:
    error = failure_of(prefix.format(port=forge.port))

    assert isinstance(error, Unreachable)
    assert words in error.message


def test_a_private_server_wants_the_token(private: Forge) -> None:
    assert head_of(private.prefix, token=TOKEN) == private.head("langgraph")
    for token in (None, Secret("wrong")):
        error = failure_of(private.prefix, token=token)
        assert error.code == "template_denied"
        assert "MOLECULE_GITEA_TOKEN" in error.hint


def test_a_redirect_never_receives_the_token(private: Forge, forge: Forge) -> None:
    before = len(forge.requests())
    elsewhere = f"http://127.0.0.1:{forge.port}/api/v1/repos/{ORGANISATION}/{NAME}langgraph/branches/main"

    with private.misbehaving(Fault("api", 307, location=elsewhere)):
        failure_of(private.prefix, token=TOKEN)

    assert len(forge.requests()) == before


# ---- the forge itself


def test_the_same_files_are_the_same_commit_everywhere(forge: Forge, private: Forge, files: Path) -> None:
    sha = forge.head("langgraph")

    assert private.head("langgraph") == sha
    assert forge.publish("langgraph", files) == sha


@pytest.mark.parametrize(
    "path",
    [
        f"/{ORGANISATION}/{NAME}langgraph.git/config",
        f"/{ORGANISATION}/{NAME}langgraph.git/git-receive-pack",
        f"/{ORGANISATION}/../{NAME}langgraph.git/info/refs",
        "/other/repository.git/info/refs",
        f"/api/v1/repos/other/{NAME}langgraph/branches/main",
        f"/api/v1/repos/{ORGANISATION}/{NAME}langgraph/branches/other",
        f"/api/v1/repos/{ORGANISATION}/langgraph/branches/main",
    ],
)
def test_the_forge_serves_nothing_else(forge: Forge, path: str) -> None:
    answer = subprocess.run(
        [
            "curl",
            "--silent",
            "--path-as-is",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            f"http://127.0.0.1:{forge.port}{path}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )

    assert answer.stdout == "404"


def test_the_forge_takes_no_push(forge: Forge) -> None:
    bare = str(forge.repository("langgraph"))
    pushed = subprocess.run(
        ["git", f"--git-dir={bare}", "push", f"{forge.prefix}langgraph.git", "main:other"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert pushed.returncode != 0
