import re
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

import worker.engine
from config import settings
from tasks.catalogue import KINDS
from worker.engine import states
from worker.engine.kinds import Kind

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
LIMIT = 350
#: Longer than the limit, with the reason.
LONG: dict[str, str] = {
    "tests/integration/test_engine.py": "the rules of the engine are read side by side",
    "tests/integration/test_image_builds.py": "all of a build's life shares one bench",
    "tests/unit/test_decide.py": "one property for each sentence of the policy",
    "tests/unit/test_docker_shape.py": "tables of what the engine is told and what it answers",
}


def sources() -> list[Path]:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in tracked.splitlines() if "migrations" not in name]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_readmes_diagram_is_the_machine(kind: Kind) -> None:
    assert f"```mermaid\n{kind.machine.mermaid()}\n```" in README


def test_the_life_of_a_job_is_drawn_as_it_is() -> None:
    page = worker.engine.__doc__ or ""

    assert "\n".join(f"    {line}" for line in states.mermaid().splitlines()) in page
    assert f"```mermaid\n{states.mermaid()}\n```" in README


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = {str(path.relative_to(ROOT)) for path in sources() if len(path.read_text().splitlines()) > LIMIT}

    assert long == set(LONG)


def test_every_setting_is_in_the_readme_with_its_sentence() -> None:
    rows = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| (.*) \|$", README, re.MULTILINE))

    assert rows == dict(settings.known_names())


def test_only_two_modules_import_celery() -> None:
    importing = {
        str(path.relative_to(ROOT))
        for path in sources()
        if re.search(r"^\s*(?:from|import) (?:celery|kombu)\b", path.read_text(), re.MULTILINE) and "tests" not in path.parts
    }

    assert importing == {"worker/app.py"}


def test_what_exists_outside_is_written_down_before_it_is_made() -> None:
    order = [step.name for step in KINDS[0].machine.steps]

    assert next(pairwise(order)) == ("admit", "image")
    assert order.index("admit") < order.index("storage") < order.index("container") < order.index("start")
