import pytest

from worker.domain import Secret
from worker.errors import Misconfigured, Refused
from worker.images.redact import Redaction, basic
from worker.images.registry import RegistryImages
from worker.images.source import LOCAL_PREFIX, Mode, Source, local_reference, refuse_unknown, registry_reference, resolve

RUNTIMES = ("langgraph", "claude-code", "openclaw", "deepagents", "crewai", "autogen", "hermes", "gemini-cli", "codex")


@pytest.mark.parametrize(
    ("registry", "source"),
    [
        (None, Source(Mode.LOCAL, "molecule-local")),
        ("", Source(Mode.LOCAL, "molecule-local")),
        ("123456789012.dkr.ecr.us-east-2.amazonaws.com/molecule-ai", None),
        ("ghcr.io/molecule-ai", None),
        (" ", None),
        ("\t\n", None),
        ("not a registry", None),
        ("molecule-local", None),
    ],
)
def test_only_an_unset_or_empty_registry_means_local(registry: str | None, source: Source | None) -> None:
    assert resolve(registry) == (source or Source(Mode.REGISTRY, str(registry)))


def test_the_local_prefix_cannot_be_mistaken_for_a_host() -> None:
    assert not set(LOCAL_PREFIX) & set("./:")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_pulled_reference_is_spelled_as_the_platform_spells_it(runtime: str) -> None:
    assert registry_reference("host/org", runtime) == f"host/org/workspace-template-{runtime}:latest"


def test_twelve_digits_of_the_commit_pin_the_local_tag() -> None:
    assert local_reference("hermes", "0123456789abcdef" * 3) == "molecule-local/workspace-template-hermes:0123456789ab"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_listed_runtime_is_let_through(runtime: str) -> None:
    refuse_unknown(runtime, RUNTIMES)


@pytest.mark.parametrize(
    "runtime",
    [
        "",
        " ",
        " hermes",
        "hermes ",
        "hermes\n",
        "Hermes",
        "HERMES",
        "../x",
        "hermes/../x",
        "herm",
        "hermes:latest",
        "hermès",
        "a" * 500,
    ],
)
def test_anything_but_a_listed_runtime_is_refused(runtime: str) -> None:
    with pytest.raises(Refused) as caught:
        refuse_unknown(runtime, RUNTIMES)

    assert caught.value.code == "unknown_runtime"
    assert len(caught.value.message) < 200


def test_registry_mode_refuses_in_words_and_never_builds() -> None:
    images = RegistryImages(resolve("host/org"), RUNTIMES)

    with pytest.raises(Misconfigured, match="pulling comes with a later release"):
        images.ensure("hermes", "", lambda: False)
    with pytest.raises(Refused):
        images.ensure("../x", "", lambda: False)


TOKEN = Secret("tok+en/with=signs")


@pytest.mark.parametrize(
    "text", [TOKEN.reveal(), "tok%2Ben%2Fwith%3Dsigns", "dG9rK2VuL3dpdGg9c2lnbnM=", "dG9rK2VuL3dpdGg9c2lnbnM", basic(TOKEN)]
)
def test_every_spelling_of_the_token_is_masked(text: str) -> None:
    assert Redaction(TOKEN)(f"before {text} after").startswith("before ***")
    assert text not in Redaction(TOKEN)(f"before {text} after")


def test_the_user_part_of_a_url_is_masked_without_any_token() -> None:
    assert Redaction(None)("fatal: https://oauth2:hunter2@host/x?a=b") == "fatal: https://***@host/x?a=b"
    assert Redaction(None)("nothing to hide") == "nothing to hide"
