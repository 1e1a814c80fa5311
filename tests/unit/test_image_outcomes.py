import errno

import pytest

from worker.errors import BackendBusy, Misconfigured, Retryable, Unreachable, WorkerError
from worker.images.build import image_of
from worker.images.faults import TemplateFault, of_disk
from worker.images.stream import Outcome

ID = "sha256:" + "0123456789abcdef" * 4
DONE = "0123456789ab"


def test_a_build_is_done_when_the_id_and_the_closing_line_agree() -> None:
    assert image_of(Outcome(status=200, image=ID, done=DONE)) == ID


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(status=200),
        Outcome(status=200, image=ID),  # a stage of several was done, and then the engine left
        Outcome(status=200, done=DONE),
        Outcome(status=200, image=ID, done="ffffffffffff"),
        Outcome(status=200, image=ID, done=DONE, broken=OSError()),
        Outcome(),
    ],
)
def test_anything_less_is_a_failure_that_may_pass(outcome: Outcome) -> None:
    with pytest.raises(Retryable):
        image_of(outcome)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("write /x: no space left on device", BackendBusy),
        ("toomanyrequests: You have reached your pull rate limit", BackendBusy),
        ("the --mount option requires BuildKit. Refer to https://docs.docker.com", TemplateFault),
        ("pull access denied for x, repository does not exist or may require 'docker login'", TemplateFault),
        ("manifest for x:y not found: manifest unknown: manifest unknown", TemplateFault),
        ('Get "https://x/v2/": dial tcp: lookup x: no such host', Unreachable),
        ('Get "http://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused', Unreachable),
        ("net/http: TLS handshake timeout", Unreachable),
        ("context canceled", Retryable),
        ("COPY failed: file not found in build context", TemplateFault),
        ("anything that nobody has seen before", TemplateFault),
    ],
)
def test_what_the_engine_says_is_translated_and_never_shown(error: str, kind: type[WorkerError]) -> None:
    with pytest.raises(kind) as caught:
        image_of(Outcome(status=200, error=error))

    assert type(caught.value) is kind
    assert error not in caught.value.message + caught.value.hint


def test_the_words_of_a_failing_command_do_not_count() -> None:
    with pytest.raises(TemplateFault, match=r"failed in step 4 \(exit code 2\)"):
        image_of(
            Outcome(status=200, step="4", error="The command '/bin/sh -c echo no space left on device' returned 2", exit_code=2)
        )


@pytest.mark.parametrize(("status", "kind"), [(400, TemplateFault), (500, Retryable)])
def test_an_answer_that_is_no_stream_is_judged_by_its_status(status: int, kind: type[WorkerError]) -> None:
    with pytest.raises(kind) as caught:
        image_of(Outcome(status=status, error="dockerfile parse error line 1: unknown instruction: NONSENSE"))

    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, BackendBusy), (errno.EDQUOT, BackendBusy), (errno.EACCES, Misconfigured)]
)
def test_the_disk_s_trouble_is_never_the_template_s_fault(number: int, kind: type[WorkerError]) -> None:
    assert type(of_disk(OSError(number, "x"))) is kind
