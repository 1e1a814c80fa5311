from collections.abc import Mapping
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from config.settings import runtimes
from tasks.provision import inputs
from worker.domain import Secret, Workspace, WorkspaceId, WorkspaceStatus
from worker.errors import Refused

ID = WorkspaceId("00000000-0000-4000-8000-000000000001")
HOSTILE = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=80)


def workspace(**fields: Any) -> Workspace:
    row = {
        "id": ID,
        "name": "Ada",
        "role": None,
        "tier": 2,
        "status": WorkspaceStatus.PROVISIONING,
        "runtime": "langgraph",
        "parent_id": None,
        "workspace_dir": None,
        "workspace_access": "none",
    }
    return Workspace(**{**row, **fields})


def environment(given: Workspace, secrets: Mapping[str, str], **more: Any) -> dict[str, str]:
    hidden = {name: Secret(value) for name, value in secrets.items()}
    full = {"model": None, "platform_url": "http://platform", "passthrough": {}, **more}
    return {name: value.reveal() for name, value in inputs.environment(given, hidden, **full).items()}


@given(name=HOSTILE, role=HOSTILE, model=HOSTILE)
def test_hostile_names_come_out_of_the_yaml_as_they_went_in(name: str, role: str, model: str) -> None:
    made = inputs.configuration(workspace(name=name, role=role), model, None, runtimes())

    read = yaml.safe_load(made.text)
    assert (read["name"], read["description"], read["model"]) == (name, role, model)


def test_a_generated_config_says_what_the_platform_says() -> None:
    read = yaml.safe_load(inputs.configuration(workspace(runtime="claude-code"), None, None, runtimes()).text)

    assert read["model"] == "sonnet"
    assert read["runtime_config"] == {"timeout": 0}
    assert read["version"] == "1.0.0"


def test_a_runtime_that_keeps_its_timeout_gets_none() -> None:
    assert "runtime_config" not in yaml.safe_load(inputs.configuration(workspace(), None, None, runtimes()).text)


def test_a_templates_config_is_kept_under_the_workspaces_own_name() -> None:
    template = "name: demo\nmodel: own-model\nskills: [a]\nruntime_config: {required_env: [API_KEY, 7]}\n"
    made = inputs.configuration(workspace(name="Ada"), None, template, runtimes())

    read = yaml.safe_load(made.text)
    assert (read["name"], read["model"], read["skills"]) == ("Ada", "own-model", ["a"])
    assert made.required == ("API_KEY",)
    assert made.origin == "template"


def test_the_model_that_was_asked_for_wins_over_the_templates() -> None:
    made = inputs.configuration(workspace(), "asked", "model: own-model\n", runtimes())

    assert yaml.safe_load(made.text)["model"] == "asked"


@pytest.mark.parametrize("template", ["a: [", "- a list", "just words"])
def test_a_config_that_would_crash_the_agent_for_ever_is_refused(template: str) -> None:
    with pytest.raises(Refused, match="read template"):
        inputs.configuration(workspace(), None, template, runtimes())


def test_secrets_win_over_host_variables_and_the_identity_over_secrets() -> None:
    made = environment(
        workspace(),
        {"SHARED": "secret", "PLATFORM_URL": "http://evil", "WORKSPACE_ID": "x"},
        passthrough={"SHARED": Secret("host"), "ONLY": Secret("host")},
    )

    assert made["SHARED"] == "secret"
    assert made["ONLY"] == "host"
    assert made["PLATFORM_URL"] == made["MOLECULE_URL"] == "http://platform"
    assert made["WORKSPACE_ID"] == ID


def test_an_author_is_made_up_only_where_none_is_given() -> None:
    made = environment(workspace(name="Ada & Co!"), {"GIT_AUTHOR_EMAIL": "me@example.com", "GIT_AUTHOR_NAME": ""})

    assert made["GIT_AUTHOR_EMAIL"] == "me@example.com"
    assert made["GIT_AUTHOR_NAME"] == "Molecule AI Ada & Co!"
    assert made["GIT_COMMITTER_EMAIL"] == "ada-co@agents.moleculesai.app"


@pytest.mark.parametrize(
    ("model", "secrets", "wanted"),
    [
        ("big", {"MODEL_PROVIDER": "other"}, "big"),
        (None, {"MODEL_PROVIDER": "other"}, "other"),
        (None, {}, None),
        (None, {"MODEL_PROVIDER": ""}, None),
    ],
)
def test_hermes_learns_its_model(model: str | None, secrets: dict[str, str], wanted: str | None) -> None:
    assert environment(workspace(runtime="hermes"), secrets, model=model).get("HERMES_DEFAULT_MODEL") == wanted


def test_what_is_required_and_empty_is_missing() -> None:
    assert inputs.missing(("A", "B", "C"), {"A": Secret("x"), "B": Secret("")}) == ["B", "C"]
