"""What a workspace is given: its environment and its config.yaml. Pure, so that hostile names can be tried by the thousand."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from config.settings import Runtimes
from worker.domain import Secret, Workspace
from worker.errors import Refused


@dataclass(frozen=True, slots=True)
class Configuration:
    """A config.yaml and what it demands."""

    text: str
    origin: str  #: template | generated
    required: tuple[str, ...]  #: variables that must not be empty


def configuration(workspace: Workspace, model: str | None, template: str | None, runtimes: Runtimes) -> Configuration:
    """The template's own config.yaml under this workspace's name, or a generated one where the template has none.

    Raises Refused when the template's is not YAML or not a mapping: an agent that starts with it would crash for ever.
    """
    given = _parsed(template)
    base = given if given is not None else _generated(workspace, runtimes)
    mine: dict[str, Any] = {"name": workspace.name, "tier": workspace.tier, "runtime": workspace.runtime}
    chosen = model or base.get("model") or runtimes.model_of(workspace.runtime)
    full = {**base, **mine, "model": chosen}
    # Quoted where needed and escaped to ASCII, because PyYAML writes U+0085 as it is and then reads it as a line break.
    text = yaml.safe_dump(full, sort_keys=False, allow_unicode=False)
    return Configuration(text, "generated" if given is None else "template", _required(full))


def environment(
    workspace: Workspace,
    secrets: Mapping[str, Secret],
    *,
    model: str | None,
    platform_url: str,
    passthrough: Mapping[str, Secret],
) -> dict[str, Secret]:
    """Host variables < secrets (global < own, merged by the caller) < what identifies the workspace.

    The identity comes last, because a secret named PLATFORM_URL could otherwise send the token somewhere else.
    """
    merged = {**passthrough, **secrets}
    author = f"Molecule AI {workspace.name}"
    mail = f"{_slug(workspace.name)}@agents.moleculesai.app"
    for name, value in (
        ("GIT_AUTHOR_NAME", author),
        ("GIT_COMMITTER_NAME", author),
        ("GIT_AUTHOR_EMAIL", mail),
        ("GIT_COMMITTER_EMAIL", mail),
    ):
        if not merged.get(name):
            merged[name] = Secret(value)
    if workspace.runtime == "hermes":
        chosen = Secret(model) if model else merged.get("MODEL_PROVIDER")
        if chosen:
            merged["HERMES_DEFAULT_MODEL"] = chosen
    if workspace.role:
        merged["MOLECULE_AGENT_ROLE"] = Secret(workspace.role)
    fixed = {
        "WORKSPACE_ID": str(workspace.id),
        "WORKSPACE_CONFIG_PATH": "/configs",
        "PLATFORM_URL": platform_url,
        "MOLECULE_URL": platform_url,
        "TIER": str(workspace.tier),
        "PLUGINS_DIR": "/plugins",
        "PYTHONPATH": "/app",
    }
    return {**merged, **{name: Secret(value) for name, value in fixed.items()}}


def missing(required: tuple[str, ...], given: Mapping[str, Secret]) -> list[str]:
    """Required variables that are unset or empty."""
    return [name for name in required if not given.get(name)]


def _parsed(template: str | None) -> dict[str, Any] | None:
    if template is None or not template.strip():
        return None
    try:
        found = yaml.safe_load(template)
    except yaml.YAMLError as error:
        raise Refused(
            "read template: its config.yaml is not YAML", hint="mend config.yaml in the template repository", code="bad_template"
        ) from error
    if not isinstance(found, dict):
        raise Refused(
            "read template: its config.yaml is not a mapping",
            hint="mend config.yaml in the template repository",
            code="bad_template",
        )
    return found


def _generated(workspace: Workspace, runtimes: Runtimes) -> dict[str, Any]:
    entry = runtimes.runtimes[workspace.runtime]
    return {
        "name": workspace.name,
        "description": workspace.role or "",
        "version": "1.0.0",
        "tier": workspace.tier,
        "runtime": workspace.runtime,
        "model": runtimes.model_of(workspace.runtime),
        **({} if entry.keeps_timeout else {"runtime_config": {"timeout": 0}}),
    }


def _required(config: Mapping[str, Any]) -> tuple[str, ...]:
    runtime_config = config.get("runtime_config")
    names = runtime_config.get("required_env") if isinstance(runtime_config, dict) else None
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "workspace"
