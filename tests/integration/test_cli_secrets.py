from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import text

from config import settings
from tasks.catalogue import KINDS
from tests.commands import Shell, rows
from tests.conftest import Database
from tests.toys import remember
from worker.assembly import assemble
from worker.crypto import keyring
from worker.domain import Secret
from worker.errors import Misconfigured
from worker.forbidden import LARGEST
from worker.store import secrets as store

VALUE = "hunter2-öß"


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    remember(database, *KINDS)
    return Shell(
        {"DATABASE_URL": database.url.reveal(), "MOLECULE_BACKEND": "memory", "MOLECULE_WORKER_STATE_DIR": str(tmp_path / "state")}
    )


def stored(database: Database, tmp_path: Path, workspace: str) -> dict[str, str]:
    key = keyring.load(None, production=False, state_dir=tmp_path / "state")
    with database.engine.connect() as connection:
        return {name: value.reveal() for name, value in store.open_all(connection, key, workspace).items()}  # type: ignore[arg-type]


def workspace(shell: Shell) -> str:
    return shell("workspaces", "create", "--name", "a").out.strip()


def test_a_secret_is_set_listed_without_its_value_and_unset(shell: Shell, database: Database, tmp_path: Path) -> None:
    ran = shell("secrets", "set", "A", stdin=VALUE + "\n")
    assert (ran.code, ran.out, ran.err.splitlines()[-1]) == (0, "", "A is set; workspaces find it at their next start")
    assert stored(database, tmp_path, workspace(shell)) == {"A": VALUE}

    listed = shell("secrets", "list", "--json")
    assert '"name": "A"' in listed.out
    assert VALUE not in listed.out + listed.err + shell("secrets", "list").out

    assert shell("secrets", "unset", "A").code == 0
    assert shell("secrets", "list").err == "no secrets\n"


def test_a_workspace_has_secrets_of_its_own(shell: Shell, database: Database, tmp_path: Path) -> None:
    one, other = workspace(shell), workspace(shell)
    shell("secrets", "set", "A", stdin="global")

    assert shell("secrets", "set", "A", "--workspace", one.upper(), stdin="own").code == 0

    assert stored(database, tmp_path, one) == {"A": "own"}
    assert stored(database, tmp_path, other) == {"A": "global"}


def test_a_dotenv_file_is_set_as_a_whole_or_not_at_all(shell: Shell, database: Database, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# mine\nexport A=\"x y\"\r\n\nB='#z'\nC=a=b\n")
    assert shell("secrets", "set", "--file", str(tmp_path / "env")).code == 0
    assert stored(database, tmp_path, workspace(shell)) == {"A": "x y", "B": "#z", "C": "a=b"}

    (tmp_path / "env").write_text("D=1\nSECRETS_ENCRYPTION_KEY=2\n")
    assert shell("secrets", "set", "--file", str(tmp_path / "env")).code == 2
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM global_secrets")).scalar_one() == 3


def test_a_workspace_is_created_with_its_secrets_in_one_transaction(shell: Shell, database: Database, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=1\n")
    ran = shell("workspaces", "create", "--name", "a", "--secret-file", str(tmp_path / "env"), "--secret", "B", stdin="2")

    assert ran.code == 0, ran.err
    assert stored(database, tmp_path, ran.out.strip()) == {"A": "1", "B": "2"}


@pytest.mark.parametrize("command", [["secrets", "set", "BIG"], ["workspaces", "create", "--name", "a", "--secret", "BIG"]])
def test_a_value_that_no_process_could_be_given_is_refused(
    shell: Shell, database: Database, tmp_path: Path, command: list[str]
) -> None:
    before = rows(database)
    ran = shell(*command, stdin="x" * (LARGEST - len("BIG=")))

    assert (ran.code, ran.error) == (2, "store secret: BIG is larger than a variable can be")
    assert "131,070 bytes" in ran.hint
    assert rows(database) == before
    assert not (tmp_path / "state").exists()
    assert shell(*command, stdin="x" * (LARGEST - len("BIG=") - 1)).code == 0


def test_the_prompt_asks_twice_and_shows_nothing(shell: Shell, database: Database, tmp_path: Path) -> None:
    code, shown = shell.on_terminal("secrets", "set", "A", typed=[VALUE, VALUE])

    assert code == 0
    assert "Repeat for confirmation" in shown
    assert VALUE not in shown
    assert stored(database, tmp_path, workspace(shell)) == {"A": VALUE}


def test_no_value_is_in_what_an_unexpected_failure_prints(shell: Shell, database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE global_secrets ADD CONSTRAINT never CHECK (false) NOT VALID"))

    ran = shell("secrets", "set", "A", "--debug", stdin=VALUE)

    assert ran.code == 1
    assert ran.error == "run command: internal error IntegrityError"
    assert "Traceback" in ran.err
    assert VALUE not in ran.err


@pytest.mark.parametrize(
    "command", [["run"], ["secrets", "set", "B"], ["workspaces", "create", "--name", "a", "--secret", "B"]], ids=" ".join
)
def test_no_second_key_is_made_for_a_database_that_holds_sealed_secrets(shell: Shell, tmp_path: Path, command: list[str]) -> None:
    shell("secrets", "set", "A", stdin="v")
    elsewhere = tmp_path / "elsewhere"

    refused = shell(*command, stdin="v", MOLECULE_WORKER_STATE_DIR=str(elsewhere))

    said = f"make key: 1 stored secret is sealed under another one, which is not in {elsewhere}"
    assert (refused.code, refused.error) == (2, said)
    assert "SECRETS_ENCRYPTION_KEY" in refused.hint
    assert not (elsewhere / keyring.KEY_FILE).exists()
    assert (shell("workspaces", "list").err, shell("doctor", "--json").out.count("do not open")) == ("no workspaces\n", 0)


def test_a_worker_that_celery_starts_by_itself_makes_no_second_key_either(shell: Shell, database: Database, tmp_path: Path) -> None:
    shell("secrets", "set", "A", stdin="v")
    own = settings.load({"MOLECULE_BACKEND": "memory", "MOLECULE_WORKER_STATE_DIR": str(tmp_path / "elsewhere")})

    with ExitStack() as closing, pytest.raises(Misconfigured, match="sealed under another one"):
        assemble(own, database.engine, 1, closing)
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_is_made_beside_secrets_that_nobody_sealed(shell: Shell, database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO global_secrets (key, encrypted_value, encryption_version) VALUES ('P', 'v', 0)"))

    assert shell("secrets", "set", "A", stdin="v").code == 0
    assert shell("secrets", "set", "A", stdin="w").code == 0


@pytest.mark.parametrize(
    "command", [["secrets", "set", "B"], ["workspaces", "create", "--name", "a", "--secret", "B"]], ids=" ".join
)
def test_nothing_is_sealed_under_a_key_that_opens_nothing_of_what_is_stored(
    shell: Shell, database: Database, tmp_path: Path, command: list[str]
) -> None:
    shell("secrets", "set", "A", stdin="v")
    another = {"SECRETS_ENCRYPTION_KEY": "ab" * 32}

    refused = shell(*command, stdin="v", **another)

    assert refused.code == 4
    fingerprint = keyring.parse(Secret("ab" * 32)).fingerprint()
    assert refused.error.startswith(f"seal secret: the key here, {fingerprint}, opens none of the 1 that are stored")
    assert rows(database)["public.global_secrets"] == 1
    assert rows(database)["public.workspaces"] == 0

    assert shell("secrets", "unset", "A").code == 0
    assert shell(*command, stdin="v", **another).code == 0


def test_a_secret_whose_key_is_lost_may_be_set_again_and_one_of_another_scope_is_not_meant(shell: Shell) -> None:
    shell("secrets", "set", "A", stdin="v")
    ident = workspace(shell)
    another = {"SECRETS_ENCRYPTION_KEY": "ab" * 32}

    assert shell("secrets", "set", "A", "--workspace", ident, stdin="v", **another).code == 4
    assert shell("secrets", "set", "A", stdin="v", **another).code == 0


def test_a_single_damaged_secret_keeps_nobody_from_setting_another(shell: Shell, database: Database) -> None:
    for name in ("A", "B"):
        shell("secrets", "set", name, stdin="v")
    with database.engine.begin() as connection:
        flipped = "set_byte(encrypted_value, 20, 255 - get_byte(encrypted_value, 20))"
        connection.execute(text(f"UPDATE global_secrets SET encrypted_value = {flipped} WHERE key = 'A'"))

    assert shell("secrets", "set", "C", stdin="v").code == 0
