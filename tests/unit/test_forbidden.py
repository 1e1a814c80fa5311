"""Which names are refused, for whom, and in whose words."""

import pytest

from worker.errors import Blame, Fatal, Misconfigured, Refused
from worker.forbidden import Scope, is_name, refuse_forbidden, refuse_name

OPERATOR = [
    "ADMIN_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CP_ADMIN_API_TOKEN",
    "CP_ADMIN_TOKEN",
    "CP_PROMOTE_PROD_API_TOKEN",
    "GHCR_PULL_TOKEN",
    "HETZNER_API_TOKEN",
    "INFISICAL_CLIENT_SECRET",
    "MOLECULE_ADMIN_TOKEN",
    "MOLECULE_CP_SHARED_SECRET",
    "MOLECULE_GITEA_TOKEN",
    "MOLECULE_OPERATOR_ANYTHING",
    "MOLECULE_TEMPLATE_REPO_TOKEN",
    "PROVISION_SHARED_SECRET",
    "RAILWAY_TOKEN",
    "SECRETS_ENCRYPTION_KEY",
]
SOURCE_CONTROL = [
    "BITBUCKET_TOKEN",
    "GH_ENTERPRISE_TOKEN",
    "GH_TOKEN",
    "GITEA_TOKEN",
    "GITHUB_PERSONAL_ACCESS_TOKEN",
    "GITHUB_TOKEN",
    "GITLAB_TOKEN",
    "GL_TOKEN",
]
ALLOWED = [
    "ANTHROPIC_API_KEY",
    "DATABASE_URL",
    "GITHUB_TOKEN_FILE",
    "GITHUB_USER",
    "GLOBAL_TOKEN",
    "MY_GITHUB_TOKEN",
    "admin_token",
    "_",
    "A1",
]
MALFORMED = ["", "1A", "A-B", "A.B", "A B", "A=B", "GITHUB_TOKEN=x", "A\n", " A", "Ä", "A\x00", "A" * 129]  # fmt: skip


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("name", OPERATOR)
def test_a_key_of_the_operator_is_refused_whoever_stores_it(name: str, scope: Scope) -> None:
    with pytest.raises(Refused, match=name):
        refuse_name(name, scope)


@pytest.mark.parametrize("name", OPERATOR)
def test_a_key_of_the_operator_is_never_injected(name: str) -> None:
    with pytest.raises(Fatal, match=name):
        refuse_forbidden([name], own=[name])
    with pytest.raises(Fatal, match=name):
        refuse_forbidden(["FINE", name])


@pytest.mark.parametrize("name", SOURCE_CONTROL)
def test_a_source_control_token_is_the_workspaces_own_or_none(name: str) -> None:
    refuse_name(name, Scope.WORKSPACE)
    refuse_forbidden([name], own=[name])
    with pytest.raises(Refused, match=name):
        refuse_name(name, Scope.GLOBAL)
    with pytest.raises(Misconfigured, match=name):
        refuse_forbidden([name], own=["FINE"])


@pytest.mark.parametrize("name", [*ALLOWED, "A" * 128])
def test_any_other_name_is_allowed_everywhere(name: str) -> None:
    refuse_name(name, Scope.GLOBAL)
    refuse_name(name, Scope.WORKSPACE)
    refuse_forbidden([name])


@pytest.mark.parametrize("name", MALFORMED)
def test_a_text_that_is_no_name_is_refused_and_not_repeated(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(Refused) as stored:
        refuse_name(name, Scope.WORKSPACE)
    with pytest.raises(Refused) as injected:
        refuse_forbidden([name], own=[name])

    assert stored.value.code == injected.value.code == "bad_name"
    assert stored.value.message == "store secret: the name is not that of an environment variable"
    assert injected.value.message == "inject variable: a name is not that of an environment variable"


def test_the_one_who_stored_a_forbidden_name_is_the_one_who_is_told() -> None:
    with pytest.raises(Fatal) as own:
        refuse_forbidden(["ADMIN_TOKEN"], own=["ADMIN_TOKEN"])
    with pytest.raises(Fatal) as everyone:
        refuse_forbidden(["ADMIN_TOKEN"])

    assert (own.value.blame, everyone.value.blame) == (Blame.TENANT, Blame.OPERATOR)
