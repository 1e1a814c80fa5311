import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import cast
from urllib.parse import quote
from uuid import uuid4

import pytest
from docker import APIClient
from docker.errors import ImageNotFound
from sqlalchemy import text
from structlog.testing import capture_logs

from tests.conftest import Database
from tests.integration.images import Bench, bench, engine_or_skip, images_of, no_docker, open_docker, running
from tests.waiting import until
from worker.domain import Image, Secret
from worker.errors import Misconfigured, Refused, Retryable, Unreachable, WorkerError
from worker.forge import Fault
from worker.images import build
from worker.images.local import LocalImages
from worker.images.redact import basic
from worker.ports import ImagePending, Stopping

TOKEN = Secret("canary+token/0123456789abcdef")


def go_on() -> bool:
    return False


@pytest.fixture
def at(tmp_path: Path, database: Database) -> Iterator[Bench]:
    with bench(tmp_path, database) as made:
        yield made


@pytest.fixture
def private(tmp_path: Path, database: Database) -> Iterator[Bench]:
    with bench(tmp_path, database, TOKEN) as made:
        yield made


@pytest.fixture
def engine() -> None:
    engine_or_skip()


def image_of(images: LocalImages, runtime: str = "langgraph") -> Image:
    """The image, waited for as a job waits for it."""

    def look() -> Image | None:
        answer = images.ensure(runtime, "", go_on)
        return answer if isinstance(answer, Image) else None

    found = until(look, within=60)
    assert found is not None
    return found


def failure_of(images: LocalImages, runtime: str = "langgraph", stopping: Stopping = go_on) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        images.ensure(runtime, "", stopping)
    return caught.value


# ---- before any network


@pytest.mark.parametrize("runtime", ["../x", "LANGGRAPH", "langgraph\n", "", " langgraph"])
def test_an_unknown_runtime_is_refused_before_any_network(at: Bench, runtime: str) -> None:
    at.template()
    images = at.worker(docker=no_docker)

    assert isinstance(failure_of(images, runtime), Refused)
    assert at.forge.requests() == []


# ---- the build


@pytest.mark.usefixtures("engine")
def test_a_build_is_labelled_verified_and_named_by_its_commit(at: Bench) -> None:
    sha = at.template(dockerfile=running("echo", "hello from the build"), config__yaml="name: Ünique\nmodel: sonnet\n")

    image = image_of(at.worker())

    assert image.reference == f"molecule-local/workspace-template-langgraph:{sha[:12]}"
    assert image.template_config == "name: Ünique\nmodel: sonnet\n"
    assert image.origin == {"sha": sha, "builder": build.BUILDER, "platform": "linux/amd64", "cache": "miss"}
    client = open_docker()
    found = build.inspected(client, image.reference)
    client.close()
    assert found
    labels = build.labels_of(found)
    assert labels["molecule.image.sha"] == sha
    assert labels["molecule.image.runtime"] == "langgraph"
    assert labels["molecule.image.installation"] == at.installation
    row = at.rows()[0]
    assert (row.state, row.reference, row.error) == ("built", image.reference, None)
    assert "hello from the build" in row.log
    assert at.left_over() == []


@pytest.mark.usefixtures("engine")
def test_a_cache_hit_costs_one_call_and_neither_clone_nor_build(at: Bench) -> None:
    at.template(config__yaml="name: x\n")
    image_of(at.worker())
    before = len(at.forge.requests())

    again = image_of(at.worker())

    assert again.origin["cache"] == "hit"
    assert again.template_config == "name: x\n"
    assert [request.on for request in at.forge.requests()[before:]] == ["api"]
    assert len(at.rows()) == 1


@pytest.mark.usefixtures("engine")
def test_a_config_of_the_largest_size_survives_the_label(at: Bench) -> None:
    config = "+/=\u00fc" * (48 * 1024 // 5)
    at.template(config__yaml=config)

    assert image_of(at.worker()).template_config == config
    assert image_of(at.worker()).template_config == config


@pytest.mark.usefixtures("engine")
def test_a_name_that_somebody_else_gave_is_no_cache_hit(at: Bench) -> None:
    sha = at.template()
    client = open_docker()
    label = f"LABEL molecule.image.installation={at.installation}"  # so that it is removed afterwards
    client.import_image(b"\0" * 1024, repository="molecule-local/workspace-template-langgraph", tag=sha[:12], changes=[label])
    client.close()

    image = image_of(at.worker())

    assert image.origin["cache"] == "miss"
    assert image.template_config is None


@pytest.mark.usefixtures("engine")
def test_another_platform_or_builder_is_another_image(at: Bench) -> None:
    at.template()
    image_of(at.worker())

    assert image_of(at.worker(platform="")).origin["cache"] == "miss"
    assert at.fetches() == 2


@pytest.mark.usefixtures("engine")
def test_exactly_the_looked_up_commit_is_built_when_head_moves(at: Bench) -> None:
    first = at.template(marker="first")

    def moving() -> APIClient:
        """Docker is opened between the look-up and the fetch: that is when main moves."""
        if at.forge.head("langgraph") == first:
            at.template(marker="second")
        return open_docker()

    image = at.worker(docker=moving).ensure("langgraph", "", go_on)

    assert isinstance(image, Image)
    assert image.origin["sha"] == first
    assert at.forge.head("langgraph") != first
    client = open_docker()
    made = build.labels_of(build.inspected(client, image.reference) or {})
    client.close()
    assert made["molecule.image.sha"] == first


@pytest.mark.usefixtures("engine")
def test_the_template_s_dockerignore_counts_and_git_s_folder_is_not_in_the_context(at: Bench) -> None:
    at.template(
        dockerfile="FROM scratch\nCOPY . /all\nCOPY busybox /busybox\n"
        'RUN ["/busybox", "sh", "-c", "test -f /all/kept && test ! -e /all/dropped && test ! -e /all/.git"]\n',
        __dockerignore="# a comment\ndropped\n",
        kept="",
        dropped="",
    )

    assert image_of(at.worker()).origin["cache"] == "miss"


@pytest.mark.usefixtures("engine")
def test_no_build_arg_comes_from_outside(at: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps({"proxies": {"default": {"httpProxy": "http://outside"}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    for name in ("VERSION", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://outside")
    at.template(
        dockerfile="FROM scratch\nARG VERSION\nCOPY busybox /busybox\n"
        'RUN ["/busybox", "sh", "-c", "test -z \\"$VERSION$HTTP_PROXY$http_proxy\\""]\nCOPY nonce /nonce\n'
    )

    assert image_of(at.worker()).origin["cache"] == "miss"


# ---- one build for all


@pytest.mark.usefixtures("engine")
def test_five_callers_in_two_processes_make_one_build(at: Bench) -> None:
    at.template()
    workers = [at.worker(), at.worker()]

    with ThreadPoolExecutor(5) as pool:
        images = list(pool.map(lambda n: image_of(workers[n % 2]), range(5)))

    assert len({image.reference for image in images}) == 1
    assert at.fetches() == 1
    assert [image.origin["cache"] for image in images].count("miss") == 1
    assert len(images_of(at.installation)) == 1


@pytest.mark.usefixtures("engine")
def test_who_claims_after_the_build_ended_does_not_build_again(at: Bench) -> None:
    at.template()
    first = at.worker()
    process = at.process()

    def between_look_and_claim() -> int:
        image_of(first)
        return process

    image = at.worker(process_id=between_look_and_claim).ensure("langgraph", "", go_on)

    assert isinstance(image, Image)
    assert image.origin["cache"] == "hit"
    assert at.fetches() == 1
    assert (at.rows()[0].state, at.rows()[0].reference) == ("built", image.reference)


@pytest.mark.usefixtures("engine")
def test_who_waits_is_told_and_woken_when_the_build_ends(at: Bench) -> None:
    sha = at.template(dockerfile=running("sleep", "1.5"))
    builder, other = at.worker(), at.worker()
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(builder.ensure, "langgraph", "", go_on)
        until(lambda: at.rows() and at.rows()[0].log)  # the log is there while it builds

        pending = other.ensure("langgraph", "", go_on)
        assert isinstance(pending, ImagePending)
        assert pending.what.startswith(f"another worker is building langgraph at {sha[:12]}")
        assert pending.after == 1.0
        _wait_in_the_engine(at, pending.what)
        assert isinstance(building.result(30), Image)

    with at.database.engine.connect() as connection:
        assert connection.scalar(text("SELECT run_at <= clock_timestamp() FROM worker.jobs"))


def _wait_in_the_engine(at: Bench, what: str) -> None:
    with at.database.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO worker.jobs (kind, subject, queue, args, steps, only_forward, state, waiting_for, run_at) VALUES"
                " ('workspace.provision', 'workspace:x', 'docker.local', '{}', '{x}', false, 'waiting', :what, 'infinity')"
            ),
            {"what": what},
        )


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("holder", ["dead", "hung", "itself"])
def test_a_build_whose_holder_is_gone_is_taken_over(at: Bench, holder: str) -> None:
    at.template()
    job = str(uuid4())
    mine = at.process()
    images = at.worker(process_id=lambda: mine)
    process = mine if holder == "itself" else at.process(alive=holder != "dead")
    _hold_as(at, images, process, job)
    if holder == "hung":  # alive, but no build may last that long
        with at.database.engine.begin() as connection:
            connection.execute(text("UPDATE worker.builds SET started_at = now() - interval '1 hour'"))

    image = images.ensure("langgraph", job, go_on)

    assert isinstance(image, Image)
    assert at.rows()[0].process_id == mine


@pytest.mark.usefixtures("engine")
def test_a_living_holder_is_waited_for(at: Bench) -> None:
    at.template()
    images = at.worker()
    _hold_as(at, images, at.process(), str(uuid4()))

    assert isinstance(images.ensure("langgraph", str(uuid4()), go_on), ImagePending)
    assert at.fetches() == 0


def _hold_as(at: Bench, images: LocalImages, process: int, job: str) -> None:
    """Somebody began to build this template and has not said a word since."""
    key = images.key("langgraph", str(at.forge.head("langgraph")))
    with at.database.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO worker.builds (key, runtime, sha, host, state, process_id, job_id)"
                " VALUES (:k, 'langgraph', :s, 'local', 'building', :p, :j)"
            ),
            {"k": key.text, "s": key.sha, "p": process, "j": job},
        )


@pytest.mark.usefixtures("engine")
def test_a_builder_that_was_taken_over_writes_nothing_more(at: Bench) -> None:
    at.template(dockerfile=running("sleep", "1.5"))
    frozen = at.worker()
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(frozen.ensure, "langgraph", "", go_on)
        until(lambda: at.rows() and at.rows()[0].log)
        other = at.process()
        with at.database.engine.begin() as connection:
            connection.execute(
                text("UPDATE worker.builds SET process_id = :p, started_at = clock_timestamp(), log = 'theirs'"), {"p": other}
            )
        assert isinstance(building.result(30), Image)

    row = at.rows()[0]
    assert (row.process_id, row.state, row.log) == (other, "building", "theirs")


# ---- failures


@pytest.mark.usefixtures("engine")
def test_a_template_that_does_not_build_is_remembered_for_its_commit(at: Bench) -> None:
    at.template(dockerfile=running("sh", "-c", "echo the reason; exit 3"))
    first = failure_of(at.worker())

    again = failure_of(at.worker())

    assert isinstance(again, Misconfigured)
    assert again.message == first.message == "build image: a command failed in step 4 (exit code 3)"
    assert (again.code, again.hint, again.blame) == (first.code, first.hint, first.blame)
    assert at.fetches() == 1
    assert "the reason" in at.rows()[0].log
    assert images_of(at.installation) == []
    assert at.left_over() == []
    at.template()
    assert image_of(at.worker()).origin["cache"] == "miss"


@pytest.mark.usefixtures("engine")
def test_a_remembered_failure_is_forgotten_after_ten_minutes(at: Bench) -> None:
    at.template(dockerfile="FROM nowhere.invalid:1/x y z\n")
    failure_of(at.worker())
    failure_of(at.worker())
    assert at.fetches() == 1
    with at.database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.builds SET finished_at = finished_at - interval '10 minutes'"))

    failure_of(at.worker())

    assert at.fetches() == 2


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("dockerfile", "kind"),
    [
        ("NONSENSE\n", Misconfigured),
        ("\n", Misconfigured),
        ("FROM scratch\nCOPY absent /x\n", Misconfigured),
        ("FROM scratch\nCOPY busybox /busybox\nRUN --mount=type=cache,target=/c /busybox true\n", Misconfigured),
        ("FROM 127.0.0.1:9/base:latest\n", Unreachable),
    ],
)
def test_each_way_to_fail_is_an_error_of_its_kind(at: Bench, dockerfile: str, kind: type[WorkerError]) -> None:
    at.template(dockerfile=dockerfile)

    error = failure_of(at.worker())

    assert isinstance(error, kind)
    _closed(at, error)


@pytest.mark.usefixtures("engine")
def test_an_image_for_another_platform_is_not_named(at: Bench) -> None:
    at.template("hermes")
    base = image_of(at.worker(), "hermes").reference
    at.template(dockerfile=f"FROM {base}\nCOPY nonce /other\n")

    error = failure_of(at.worker(platform="linux/arm64"))  # the engine takes a local base of any platform without a word

    assert error.code == "image_platform"
    assert names_of(at) == [base]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("limits", "code"),
    [({"stall_s": 1.0}, "build_stalled"), ({"ceiling_s": 1.5}, "build_ceiling"), ({}, "build_abandoned")],
)
def test_a_build_that_is_over_is_ended_on_the_engine_too(at: Bench, limits: dict[str, float], code: str) -> None:
    seconds = f"{3000 + uuid4().int % 1000}"
    at.template(dockerfile=running("sleep", seconds))
    images = at.worker(**limits)  # type: ignore[arg-type]

    def asked_to_stop() -> bool:
        return code == "build_abandoned" and bool(_sleeping(seconds))

    error = failure_of(images, stopping=asked_to_stop)

    assert isinstance(error, Retryable)
    assert error.code == code
    until(lambda: not _sleeping(seconds), what="the build's container is gone")
    assert at.rows()[0].error["remembered"] is False
    assert at.left_over() == []
    assert images_of(at.installation) == []


def _sleeping(seconds: str) -> list[str]:
    client = open_docker()
    try:
        return [container["Id"] for container in client.containers(all=True) if seconds in container["Command"]]
    finally:
        client.close()


def test_a_docker_that_does_not_answer_is_unreachable(at: Bench) -> None:
    at.template()

    def absent() -> APIClient:
        return APIClient(base_url="tcp://127.0.0.1:9", version="1.41")

    assert isinstance(failure_of(at.worker(docker=absent)), Unreachable)
    assert at.rows() == []


def _closed(at: Bench, error: WorkerError) -> None:
    """Failing closed: nothing is left, nothing has a name, and no registry is spoken of."""
    said = f"{error.message} {error.hint}".lower()
    assert not re.search(r"ghcr|\becr\b|amazonaws", said)
    assert at.left_over() == []
    assert names_of(at) == []


def names_of(at: Bench) -> list[str]:
    """The tags that this test's images have."""
    return [name for image in images_of(at.installation) for name in image["RepoTags"] or [] if name != "<none>:<none>"]


# ---- failing closed, end to end


class _Empty:
    """An engine with no image, so that what fails is what comes before it."""

    def inspect_image(self, reference: str) -> object:
        raise ImageNotFound(reference)

    def close(self) -> None:
        """Nothing is open."""


def open_empty() -> APIClient:
    return cast(APIClient, _Empty())


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault("api", 404), Misconfigured, "the template of langgraph is not mirrored"),
        (Fault("api", 500), Unreachable, "answered 500"),
        (Fault("git", 403), Misconfigured, "refused"),
        (Fault("git", 500), Unreachable, "did not answer"),
    ],
)
def test_each_fault_of_the_git_server_fails_closed(at: Bench, fault: Fault, kind: type[WorkerError], words: str) -> None:
    at.template()

    with at.forge.misbehaving(fault):
        error = failure_of(at.worker(docker=open_empty))

    assert isinstance(error, kind)
    assert words in error.message
    assert [row.error["remembered"] for row in at.rows()] in ([], [False])
    _closed(at, error)


def test_a_refused_template_is_remembered(at: Bench) -> None:
    at.template(__gitmodules="")

    first, again = failure_of(at.worker(docker=open_empty)), failure_of(at.worker(docker=open_empty))

    assert first.message == again.message == "check template: it has a submodule"
    assert at.fetches() == 1
    _closed(at, again)


# ---- the token


def _spellings() -> tuple[str, ...]:
    return (TOKEN.reveal(), quote(TOKEN.reveal(), safe=""), basic(TOKEN))


@pytest.mark.usefixtures("engine")
def test_the_token_is_nowhere_but_in_two_headers(
    private: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    record = _record_git(tmp_path, monkeypatch)
    # A template that knows the token, as one that was pushed with it would.
    private.template(dockerfile=running("echo", f"leak {TOKEN.reveal()} {basic(TOKEN)}"))
    seen = {"processes": "", "paths": ""}
    with capture_logs() as logs, _watched(private, seen), private.forge.misbehaving(Fault("git", delay_s=0.3, then_serve=True)):
        image = image_of(private.worker())
        private.template(dockerfile=f"FROM scratch\nRUN {TOKEN.reveal()}\n")
        error = failure_of(private.worker())

    client = open_docker()
    labels = json.dumps(build.labels_of(build.inspected(client, image.reference) or {}))
    client.close()
    places = {
        "argv of git": record.read_text(),
        "labels": labels,
        "builds": "".join(str(tuple(row)) for row in private.rows()),
        "error": f"{error!r} {error.message} {error.hint} {error.__cause__!r}",
        "logs": str(logs),
        "output": "".join(capfd.readouterr()),
        "image": repr(image),
        **seen,
    }
    assert "fetch" in places["argv of git"]
    assert private.forge.prefix in places["argv of git"]
    assert "git-remote-http" in places["processes"]
    assert "leak ***" in places["builds"]
    for place, content in places.items():
        for spelling in _spellings():
            assert spelling not in content, place


def _record_git(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `git` on PATH that writes down its arguments and goes on as the real one."""
    record, programs = folder / "argv", folder / "programs"
    programs.mkdir()
    record.touch()
    real = subprocess.run(["sh", "-c", "command -v git"], capture_output=True, text=True, check=True).stdout.strip()
    wrapper = programs / "git"
    wrapper.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {record}\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return record


class _watched:  # noqa: N801  reads as a verb in `with`
    """Collects every process's argv and every path of the cache while the block runs."""

    def __init__(self, at: Bench, seen: dict[str, str]) -> None:
        self._at, self._seen = at, seen
        self._over = Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    argv = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if "git" in argv and argv not in self._seen["processes"]:
                    self._seen["processes"] += argv + "\n"
            self._seen["paths"] += "".join(f"{path}\n" for path in self._at.left_over() if str(path) not in self._seen["paths"])
