from typing import Any

import pytest

from worker.domain import Secret
from worker.errors import Misconfigured, Retryable
from worker.images.builds import BuildKey
from worker.images.patience import Patience
from worker.images.redact import Redaction
from worker.images.tail import Tail
from worker.images.template import Templates, parse_prefix
from worker.images.tree import BYTES_LIMIT, CONFIG_LIMIT, FILES_LIMIT, Entry, leads_out, parse_listing, refuse_hostile


def test_the_addresses_are_derived_from_the_prefix() -> None:
    repositories = parse_prefix("https://git.moleculesai.app/molecule-ai/molecule-ai-workspace-template-")

    assert repositories.branch_url("hermes") == (
        "https://git.moleculesai.app/api/v1/repos/molecule-ai/molecule-ai-workspace-template-hermes/branches/main"
    )
    assert repositories.clone_url("hermes") == "https://git.moleculesai.app/molecule-ai/molecule-ai-workspace-template-hermes.git"


def test_a_gitea_below_a_path_is_asked_below_that_path() -> None:
    assert (
        parse_prefix("https://host:8443/git/org/t-").branch_url("x") == "https://host:8443/git/api/v1/repos/org/t-x/branches/main"
    )


@pytest.mark.parametrize(
    "prefix", ["http://127.0.0.1:3000/o/t-", "http://localhost/o/t-", "http://[::1]:3000/o/t-", "https://10.0.0.1/o/t-"]
)
def test_plain_http_is_for_loopback(prefix: str) -> None:
    assert parse_prefix(prefix).org == "o"


@pytest.mark.parametrize(
    "prefix",
    [
        "http://git.moleculesai.app/o/t-",
        "http://localhost.evil.example/o/t-",
        "http://10.0.0.1/o/t-",
        "https://user:hunter2@host/o/t-",
        "https://hunter2@host/o/t-",
        "https://host/o/t-?x=hunter2",
        "https://host/o/t-#hunter2",
        "https://host/o/%2e%2e/t-",
        "https://host/o/../t-",
        "https://host/o/",
        "https://host/t-",
        "https://host//t-",
        "https://host:port/o/t-",
        "https://host/o/-t",
        "https:///o/t-",
        "file:///o/t-",
        "ssh://host/o/t-",
        "ext::sh/o/t-",
        "https://host/o/t -",
        "https://host/o/t\n-",
        "",
    ],
)
def test_a_prefix_that_could_mislead_is_refused_and_not_shown(prefix: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        parse_prefix(prefix)

    assert "hunter2" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize("token", ["with blank", "line\nbreak", "ümlaut"])
def test_a_token_that_cannot_be_a_header_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Templates("https://host/o/t-", Secret(token))

    assert token not in str(caught.value)


DOCKERFILE = Entry("Dockerfile", "100644", 10)


def test_an_ordinary_tree_is_let_through() -> None:
    refuse_hostile(
        [DOCKERFILE, Entry("start.sh", "100755", 1), Entry("a/link", "120000", 4), Entry("config.yaml", "100644", CONFIG_LIMIT)]
    )


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([], "no Dockerfile"),
        ([Entry("sub/Dockerfile", "100644", 1)], "no Dockerfile"),
        ([Entry("dockerfile", "100644", 1)], "no Dockerfile"),
        ([Entry("Dockerfile", "120000", 1)], "not a regular file"),
        ([DOCKERFILE, Entry("sub", "160000", 0)], "submodule"),
        ([DOCKERFILE, Entry(".gitmodules", "100644", 0)], "submodule"),
        ([DOCKERFILE, Entry("a/.GITMODULES", "120000", 0)], "submodule"),
        ([DOCKERFILE, Entry("x", "100664", 0)], "neither a file nor a link"),
        ([DOCKERFILE, Entry("config.yaml", "120000", 0)], "config.yaml is not"),
        ([DOCKERFILE, Entry("config.yaml", "100644", CONFIG_LIMIT + 1)], "larger than 48 KiB"),
        ([DOCKERFILE, Entry("big", "100644", BYTES_LIMIT)], "larger than 256 MiB"),
        ([DOCKERFILE, *(Entry(f"f{n}", "100644", 0) for n in range(FILES_LIMIT))], "more than 20000 files"),
    ],
)
def test_a_hostile_tree_is_refused(entries: list[Entry], why: str) -> None:
    with pytest.raises(Misconfigured, match=why):
        refuse_hostile(entries)


def test_gits_listing_is_read_with_any_byte_in_a_name() -> None:
    listing = b"100644 blob 1111 12\ta b\tc\n\xff\x00" + b"160000 commit 2222       -\tsub\x00"

    assert parse_listing(listing) == (Entry("a b\tc\n\udcff", "100644", 12), Entry("sub", "160000", 0))


@pytest.mark.parametrize(
    ("path", "target", "out"),
    [
        ("a", "b", False),
        ("a/b", "../c", False),
        ("a/b", "../../c", True),
        ("a", "..", True),
        ("a", "/etc/passwd", True),
        ("a", "b/../../c", True),
        ("a/b/c", "../../d", False),
        ("a", "..b", False),
    ],
)
def test_a_link_may_point_inside_only(path: str, target: str, out: bool) -> None:
    assert leads_out(path, target) is out


def test_the_tail_keeps_the_end_and_its_limit() -> None:
    tail = Tail(Redaction(None), limit=100)
    for n in range(1000):
        tail.write(f"line {n:03}\n")

    assert tail.text().endswith("line 999\n")
    assert len(tail.text().encode()) == 100
    assert tail.written == 9000


def test_a_single_piece_larger_than_the_limit_is_cut() -> None:
    tail = Tail(Redaction(None), limit=10)
    tail.write("é" * 50)

    assert tail.text() == "é" * 5


def test_a_token_that_spans_two_writes_is_masked() -> None:
    tail = Tail(Redaction(Secret("hunter2hunter2")))
    tail.write("x hunter2")
    tail.write("hunter2 y")

    assert tail.text() == "x *** y"


def test_a_token_is_not_half_shown_where_the_tail_is_cut() -> None:
    # Masking makes the text shorter, so that the cut alone would leave the second half of the first token.
    tail = Tail(Redaction(Secret("hunter2hunter2")), limit=400)
    for piece in ("hunter2", "hunter2", *["hunter2hunter2"] * 101, "passed"):
        tail.write(piece)

    assert "hunter2" not in tail.text()


def test_the_tail_holds_nothing_that_postgres_refuses() -> None:
    tail = Tail(Redaction(None))
    tail.write("a\x00b\ud800c")

    assert tail.text() == "a\N{REPLACEMENT CHARACTER}b?c"


def _patience(*, ceiling_s: float = 60, stall_s: float = 60, stopping: bool = False) -> Patience:
    return Patience(ceiling_s=ceiling_s, stall_s=stall_s, stopping=lambda: stopping, beat=lambda: None)


@pytest.mark.parametrize(
    ("limits", "code"),
    [({"ceiling_s": 0}, "build_ceiling"), ({"stall_s": -1}, "build_stalled"), ({"stopping": True}, "build_abandoned")],
)
def test_patience_ends_with_a_reason_and_may_be_tried_again(limits: dict[str, Any], code: str) -> None:
    with pytest.raises(Retryable) as caught:
        _patience(**limits).check()

    assert caught.value.code == code


def test_patience_lasts_while_there_is_time_and_life() -> None:
    _patience().check()


def test_every_part_of_a_key_makes_another_build() -> None:
    parts = {"runtime": "r", "sha": "s", "prefix": "p", "platform": "l", "builder": "b", "host": "h"}
    keys = {BuildKey(**{**parts, name: "other"}).text for name in parts} | {BuildKey(**parts).text}

    assert len(keys) == 7
    assert BuildKey(**parts).text == BuildKey(**parts).text
    assert all(len(key) == 16 for key in keys)
