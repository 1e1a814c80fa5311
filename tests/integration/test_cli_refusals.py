"""Bad input at the door: one clear line, exit 2, nothing stored, nothing made."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from tasks.catalogue import KINDS
from tests.commands import Ran, Shell, rows
from tests.conftest import Database, fresh_database
from tests.toys import remember

UUID = "0f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3"


def shell_of(database: Database, folder: Path) -> Shell:
    return Shell({"DATABASE_URL": database.url.reveal(), "MOLECULE_BACKEND": "memory", "MOLECULE_WORKER_STATE_DIR": str(folder)})


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    remember(database, *KINDS)
    return shell_of(database, tmp_path / "state")


def create(*arguments: str) -> list[str]:
    return ["workspaces", "create", "--name", "a", *arguments]


#: What somebody types, and what is said to it.
CASES = [
    (create("--runtime", "nope"), "runtime is not one"),
    (create("--runtime", "../langgraph"), "runtime is not one"),
    (create("--runtime", "Langgraph"), "runtime is not one"),
    (create("--runtime", "langgraph\n"), "runtime is not one"),
    (create("--tier", "0"), "'0' is not one of '1', '2', '3', '4'"),
    (create("--tier", "5"), "'5' is not one of"),
    (create("--tier", "two"), "'two' is not one of"),
    (create("--tier", ""), "'' is not one of"),
    (create("--name", ""), "name is required"),
    (create("--name", "a\nb"), "control character"),
    (create("--name", "a\x1bb"), "control character"),
    (create("--name", "a{b}"), "name holds one of"),
    (create("--name", "a: [b]"), "name holds one of"),
    (create("--role", "&anchor"), "role holds one of"),
    (create("--parent", "x"), "it is not a UUID"),
    (create("--parent", UUID), "parent does not exist"),
    (create("--org", "A_b"), "organisation is not a slug"),
    (create("--workspace-dir", "/etc"), "create workspace: "),
    (create("--workspace-dir", "../x"), "create workspace: "),
    (create("--access", "read_only"), "create workspace: "),
    (create("--secret", "1A"), "not that of an environment variable"),
    (create("--secret", "SECRETS_ENCRYPTION_KEY"), "is forbidden"),
    (create("--secret", "A", "--secret", "B"), "stdin holds one value only"),
    (create("--secret-file", "/nonexistent"), "no such file"),
    (["workspaces", "show", "not-an-id"], "it is not a UUID"),
    (["workspaces", "show", UUID], "there is no such workspace"),
    (["workspaces", "logs", UUID + "\n"], "it is not a UUID"),
    (["workspaces", "logs", UUID], "there is no such workspace"),
    (["workspaces", "delete", UUID], "there is no such workspace"),
    (["jobs", "show", "x"], "it is not a UUID"),
    (["jobs", "show", UUID], "there is no such job"),
    (["jobs", "watch", UUID], "there is no such job"),
    (["jobs", "cancel", UUID, "--reason", "r"], "cancel job: there is no such job"),
    (["jobs", "retry", UUID], "no such job"),
    (["jobs", "retry", UUID, "x"], "it is not a UUID"),
    (["enqueue", "nope"], 'unknown kind "nope"'),
    (["enqueue", "workspace.provision"], "arg workspace_id is missing"),
    (["enqueue", "workspace.provision", "workspace_id=x"], "arg workspace_id is not a UUID"),
    (["enqueue", "workspace.provision", "workspace_id=true"], "arg workspace_id is not a UUID"),
    (["enqueue", "workspace.provision", f"workspace_id={UUID}", "force=true"], 'unknown arg "force"'),
    (["enqueue", "workspace.provision", UUID], "not written key=value"),
    (["enqueue", "workspace.provision", f"workspace_id={UUID}", f"workspace_id={UUID}"], "workspace_id is given twice"),
    (["enqueue", "workspace.provision", f"workspace_id={UUID}", "--at", "noon"], "it is not a time"),
    (["enqueue", "workspace.provision", f"workspace_id={UUID}", "--at", "0001-01-01"], "its year is not one from 1970 to 9998"),
    (
        ["enqueue", "workspace.provision", f"workspace_id={UUID}", "--at", "9999-12-31T23:59"],
        "its year is not one from 1970 to 9998",
    ),
    (["jobs", "retry", "--failed", "--since", "-5min"], "it is not an age"),
    (["jobs", "retry", "--failed", "--since", ""], "it is not an age"),
    (["enqueue", "workspace.provision", f"workspace_id={UUID}", "--priority", "-1"], "'--priority'"),
    (["enqueue", "workspace.provision", f"workspace_id={UUID}", "--idempotency-key", "k" * 201], "1 to 200 characters"),
    (["secrets", "set", "A=hunter2"], "visible to every user"),
    (["secrets", "set", "A", "hunter2"], "visible to every user"),
    (["secrets", "set", "A", "--value=hunter2"], "visible to every user"),
    (["secrets", "set"], "one KEY is needed"),
    (["secrets", "set", "A"], "the value on stdin is empty"),
    (["secrets", "set", "A-B"], "not that of an environment variable"),
    (["secrets", "set", "GITHUB_TOKEN"], "is forbidden"),
    (["secrets", "set", "A", "--workspace", "x"], "it is not a UUID"),
    (["secrets", "unset", "A"], "there is none of that name"),
]


#: One of each command that opens the database.
ALL = [
    *(["jobs", "list"], ["jobs", "show", UUID], ["jobs", "retry", "--failed"], ["jobs", "pause", "all"], ["jobs", "explain", UUID]),
    *(["enqueue", "workspace.provision", f"workspace_id={UUID}"], create(), ["workspaces", "list"], ["secrets", "list"]),
    *(["secrets", "unset", "A"], ["sweep"], ["drain", "here"], ["undrain", "here"]),
]
OTHERS = {
    "0001": ("compare schema: it is at revision 0001 and must be at 0002", "molecule-worker migrate"),
    "9999": ("compare schema: revision 9999 is a newer release's", "run that release, or restore a backup from before it"),
}


@pytest.mark.parametrize("stored", OTHERS)
def test_no_command_works_on_the_schema_of_another_release(database: Database, shell: Shell, stored: str) -> None:
    said, hint = OTHERS[stored]
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.alembic_version SET version_num = :stored"), {"stored": stored})
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda arguments: shell(*arguments), [*ALL, *([["migrate"]] if stored == "9999" else [])]))

    assert [(ran.code, ran.hint) for ran in answers] == [(2, hint)] * len(answers)
    assert all(ran.error.startswith(said) for ran in answers)


@pytest.fixture(scope="module")
def refused(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, ...], Ran]:
    """All of them against one database, side by side, because none may leave anything there."""
    folder = tmp_path_factory.mktemp("refused") / "state"
    with fresh_database(postgres) as database, ThreadPoolExecutor(4) as pool:
        remember(database, *KINDS)
        shell, before = shell_of(database, folder), rows(database)
        answers = dict(zip(map(tuple, typed()), pool.map(lambda arguments: shell(*arguments), typed()), strict=True))
        assert rows(database) == before
    assert not folder.exists()
    return answers


def typed() -> list[list[str]]:
    return [arguments for arguments, _ in CASES]


@pytest.mark.parametrize(
    ("arguments", "said"), CASES, ids=lambda value: " ".join(map(repr, value[1:])) if isinstance(value, list) else ""
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(
    refused: Mapping[tuple[str, ...], Ran], arguments: Sequence[str], said: str
) -> None:
    ran = refused[tuple(arguments)]

    assert ran.code == 2, ran.err
    assert said in ran.error
    assert ran.hint
    assert len(ran.err.splitlines()) == 2
    assert ran.out == ""
    assert "hunter2" not in ran.err


@pytest.mark.parametrize("key", ["abc", "ab" * 31, "x" * 64, " " + "ab" * 32])
def test_a_key_of_the_wrong_length_is_refused_and_says_which_are_right(shell: Shell, database: Database, key: str) -> None:
    ran = shell("secrets", "set", "A", stdin="v", SECRETS_ENCRYPTION_KEY=key)

    assert (ran.code, ran.error) == (2, "read SECRETS_ENCRYPTION_KEY: it is not a key of 32 bytes")
    assert "64 hex digits" in ran.hint
    assert "base64 of exactly 32 bytes" in ran.hint
    assert key not in ran.err
    assert rows(database)["public.global_secrets"] == 0


def test_sixty_four_hex_characters_are_a_key(shell: Shell, database: Database, tmp_path: Path) -> None:
    ran = shell("secrets", "set", "A", stdin="v", SECRETS_ENCRYPTION_KEY="aB" * 32)

    assert ran.code == 0, ran.err
    assert rows(database)["public.global_secrets"] == 1
    assert not (tmp_path / "state").exists()


def test_an_unknown_setting_is_refused_with_the_nearest_known_one(shell: Shell, database: Database) -> None:
    before = rows(database)

    ran = shell("workspaces", "create", "--name", "a", MOLECULE_WORKER_RECIEVER_ADDR="127.0.0.1:1")

    assert ran.code == 2
    assert ran.error == "read settings: MOLECULE_WORKER_RECIEVER_ADDR is not known; did you mean MOLECULE_WORKER_RECEIVER_ADDR?"
    assert rows(database) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [("MOLECULE_WORKER_SLOTS", "many"), ("MOLECULE_WORKER_RECEIVER_ADDR", "everywhere"), ("MOLECULE_BACKEND", "moon")],
)
def test_a_setting_that_is_none_is_refused_by_its_name_and_not_repeated(shell: Shell, name: str, value: str) -> None:
    ran = shell("jobs", "list", **{name: value})

    assert ran.code == 2
    assert ran.error.startswith(f"read settings: {name}: ")
    assert value not in ran.err


@pytest.mark.parametrize("tier", ["3", "4"])
def test_whoever_would_be_root_on_a_host_that_tenants_share_is_refused_at_the_door(
    shell: Shell, database: Database, tier: str
) -> None:
    before = rows(database)

    ran = shell("workspaces", "create", "--name", "a", "--tier", tier, MOLECULE_ORG_ID="acme")

    assert ran.code == 2
    assert ran.error == f"create workspace: tier {tier} is root on the host, which tenants share on this installation"
    assert ran.hint == "choose tier 1 or 2"
    assert rows(database) == before
    assert shell("workspaces", "create", "--name", "a", "--tier", "2", MOLECULE_ORG_ID="acme").code == 0
    assert shell("workspaces", "create", "--name", "a", "--tier", tier, MOLECULE_ORG_ID="").code == 0


def test_a_dotenv_file_is_refused_by_the_number_of_its_line(shell: Shell, database: Database, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=1\n# fine\nhunter2 hunter3\n")

    ran = shell("secrets", "set", "--file", str(tmp_path / "env"))

    assert (ran.code, ran.error) == (2, "read secrets file: line 3 is not KEY=value")
    assert "hunter" not in ran.err
    assert rows(database)["public.global_secrets"] == 0


def test_a_traceback_is_shown_by_debug_and_by_nothing_else(shell: Shell) -> None:
    plain, debug = shell("jobs", "show", UUID), shell("jobs", "show", UUID, "--debug")

    assert "Traceback" not in plain.err
    assert "Traceback" in debug.err
    assert (plain.code, debug.code, plain.error) == (2, 2, debug.error)
