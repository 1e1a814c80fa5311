"""What is installed in production is what was tested, and nothing of what only tests and demonstrations need."""

import re
import tomllib
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).parent.parent.parent
_EXTRAS: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def pins(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Package → its version with its marker, and its hashes."""
    found = {}
    for entry in re.split(r"^(?=[\w.-]+==)", (ROOT / name).read_text(), flags=re.MULTILINE):
        package, _, pinned = entry.partition("==")
        found[package] = (pinned.partition("\\")[0].strip(), frozenset(re.findall(r"sha256:\w+", pinned)))
    return {package: pin for package, pin in found.items() if package.strip()}


def test_production_is_a_part_of_what_the_tests_run_on() -> None:
    run, tested = pins("requirements-run.lock"), pins("requirements.lock")

    assert len(run) > 30
    assert {package: pin for package, pin in run.items() if tested.get(package) != pin} == {}


def test_nothing_of_the_embedded_stack_or_of_development_is_in_production() -> None:
    extra = {Requirement(wanted).name.lower() for name in ("embedded", "dev", "bench") for wanted in _EXTRAS[name]}

    assert extra & set(pins("requirements-run.lock")) == set()


def test_what_each_kind_of_broker_needs_is_in_production() -> None:
    assert {"redis", "packaging", "amqp"} <= set(pins("requirements-run.lock"))
