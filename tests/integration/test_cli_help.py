import subprocess
import sys

import pytest

from tests.commands import Shell

HEAVY = ("sqlalchemy", "celery", "docker", "rich", "pydantic", "httpx", "psycopg2")
#: Runs the command line as the console script does, and tells what it loaded.
TELL = """
import sys
from worker.cli.main import main
try:
    main()
except SystemExit as end:
    print("code", end.code)
print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["up", "--help"],
        ["doctor", "--help"],
        ["workspaces", "--help"],
        ["workspaces", "create", "-h"],
        ["secrets", "set", "--help"],
        ["jobs", "list", "--help"],
        ["jobs", "retry", "--help"],
        ["jobs", "pause", "--help"],
        ["drain", "--help"],
        ["sweep", "--help"],
        ["enqueue", "--help"],
    ],
    ids=" ".join,
)
def test_help_answers_without_loading_what_only_the_commands_need(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TELL, *arguments], env=Shell().environment(), capture_output=True, text=True, check=True
    )

    *shown, code, loaded = done.stdout.splitlines()
    assert code == "code 0"
    assert shown[0].startswith("Usage: molecule-worker")
    assert max(map(len, shown)) <= 80
    assert set(loaded.split()).isdisjoint(HEAVY)


def test_without_a_command_the_help_is_shown_and_it_is_wrong_usage() -> None:
    ran = Shell()()

    assert ran.code == 2
    assert ran.out == ""
    assert "workspaces create --name A --wait" in ran.err
    assert "error:" not in ran.err


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["fly"], "read command line: no such command 'fly'", "molecule-worker --help"),
        (["jobs", "fly"], "read command line: no such command 'fly'", "molecule-worker jobs --help"),
        (["jobs", "list", "--fly"], "read command line: no such option '--fly'", "molecule-worker jobs list --help"),
        (["workspaces", "create"], "read command line: missing option '--name'", "molecule-worker workspaces create --help"),
        (["jobs", "show"], "read command line: missing argument 'ID'", "molecule-worker jobs show --help"),
        (["jobs", "list", "--state", "x\ny"], "read command line: invalid value for '--state': 'x\\ny' is not one of", None),
        (
            ["jobs", "show", "a", "b\x1b[31m\nc"],
            "read command line: got unexpected extra argument (b\N{REPLACEMENT CHARACTER}[31m",
            None,
        ),
    ],
    ids=repr,
)
def test_wrong_usage_is_one_line_and_where_to_read_on(arguments: list[str], error: str, hint: str | None) -> None:
    ran = Shell()(*arguments)

    assert ran.code == 2
    assert ran.out == ""
    assert ran.error.startswith(error)
    assert hint is None or ran.hint == hint
    assert len(ran.err.splitlines()) == 2
