import json
import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tasks.catalogue import KINDS
from tests.commands import Ran, Shell
from tests.conftest import Database
from tests.listening import platform
from tests.serving import served
from tests.toys import remember
from worker import embedded
from worker.domain import Secret
from worker.receiver import receiver
from worker.store.cache import Cache

WRONG_DATABASE = "postgresql://ada:hunter2@127.0.0.1:1/worker"


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    remember(database, *KINDS)
    return Shell(
        {
            "DATABASE_URL": database.url.reveal(),
            "MOLECULE_BACKEND": "memory",
            "MOLECULE_WORKER_STATE_DIR": str(tmp_path / "state"),
            "MOLECULE_WORKER_RECEIVER_ADDR": f"127.0.0.1:{embedded.free_port()}",
            "MOLECULE_WORKER_ADMIN_ADDR": f"127.0.0.1:{embedded.free_port()}",
            "MOLECULE_LOCAL_BUILD_CACHE": str(tmp_path / "builds"),
        }
    )


def checks(ran: Ran) -> dict[str, dict[str, Any]]:
    assert "hunter2" not in ran.out + ran.err
    return {check["name"]: check for check in json.loads(ran.out)["checks"]}


def test_what_is_absent_and_not_needed_is_fine(shell: Shell, tmp_path: Path) -> None:
    ran = shell("doctor", "--json")
    found = checks(ran)

    assert ran.code == 0, ran.out
    assert json.loads(ran.out)["ok"] is True
    assert {name: check["verdict"] for name, check in found.items() if check["verdict"] != "ok"} == {
        "workers": "warning",
        "clock": "warning",
        "receiver": "warning",
        "admin": "warning",
    }
    assert found["pauses"]["said"] == "nothing is paused or drained"
    assert found["roles"]["said"].startswith("molecule_worker_client may enqueue, cancel, retry and read")
    assert {found[name]["mend"] for name in ("workers", "receiver", "admin")} == {"molecule-worker run"}
    assert found["tracing"]["said"] == "off: no OTEL_EXPORTER_OTLP_ENDPOINT is set"
    assert found["redis"]["said"] == "none: the engine does not need it"
    assert found["broker"]["said"] == "none: jobs start up to a second later"
    assert found["catalogue"]["said"] == f"{len(KINDS)} kinds of jobs, as in this release"
    assert "not used" in found["docker"]["said"]
    assert not (tmp_path / "state").exists()


def test_a_person_reads_one_line_for_each_and_how_to_mend_it(shell: Shell) -> None:
    ran = shell("doctor")

    assert ran.code == 0
    assert "ok       postgres    version " in ran.out
    assert "warning  workers     no process is alive, so jobs wait\n                     → molecule-worker run\n" in ran.out
    assert ran.err == "14 ok, 4 warning, 0 wrong\n"


def test_on_a_terminal_its_lines_fit(shell: Shell) -> None:
    shell("jobs", "pause", "all", "--reason", "a database that has to be moved to another disk before the evening")

    _, shown = shell.on_terminal("doctor")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)

    assert "before the evening" in " ".join(plain.split())
    assert {line for line in plain.splitlines() if len(line) > 80 and " " in line[21:]} == set()


def test_no_postgres_is_three_and_its_password_is_not_shown(shell: Shell) -> None:
    ran, unset = shell.each("doctor", "--json", given=[{"DATABASE_URL": WRONG_DATABASE}, {"DATABASE_URL": ""}])
    found = checks(ran)

    assert ran.code == 3
    assert found["postgres"]["said"] == "nothing listens at its host and port"
    assert found["postgres"]["unreachable"] is True
    assert "schema" not in found
    assert unset.code == 3


def test_a_broken_setting_is_said_and_nothing_else_is_looked_at(shell: Shell) -> None:
    ran = shell("doctor", "--json", MOLECULE_WORKER_SLOT="1")

    assert ran.code == 2
    assert list(checks(ran)) == ["settings"]
    assert "did you mean MOLECULE_WORKER_SLOTS?" in checks(ran)["settings"]["said"]


def test_a_secret_that_is_said_twice_is_a_broken_setting(shell: Shell) -> None:
    ran = shell("doctor", "--json", DATABASE_URL="postgresql:///hunter2", DATABASE_URL_FILE="/nowhere")

    assert ran.code == 2
    assert list(checks(ran)) == ["settings"]
    assert "hunter2" not in ran.out + ran.err


def test_a_database_without_our_schema_has_to_be_migrated(shell: Shell, database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.alembic_version SET version_num = '9999'"))
    newer = shell("doctor", "--json")
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM worker.alembic_version"))
    none = shell("doctor", "--json")

    assert (newer.code, none.code) == (2, 2)
    assert checks(newer)["schema"]["said"].startswith("revision 9999 is a newer release's")
    assert checks(none)["schema"]["mend"] == "molecule-worker migrate"


def test_a_catalogue_of_another_release_is_wrong(shell: Shell, database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE worker.kinds SET steps = '{other}' WHERE kind = 'workspace.delete'"))

    ran = shell("doctor", "--json")

    assert ran.code == 2
    assert "workspace.delete" in checks(ran)["catalogue"]["said"]


def test_a_violated_invariant_is_wrong(shell: Shell, database: Database) -> None:
    broken = "INSERT INTO worker.jobs (kind, subject, queue, args, steps, only_forward, state, finished_at) VALUES ('k', 's', 'q', '{}', '{a}', false, 'failed', now())"
    with database.engine.begin() as connection:
        connection.execute(text(broken))
    ran = shell("doctor", "--json")
    with database.engine.begin() as connection:
        connection.execute(text("DELETE FROM worker.jobs"))

    assert ran.code == 2
    assert "1 violation, the first: failed without an error" in checks(ran)["invariants"]["said"]


def test_a_key_that_does_not_open_what_is_stored_is_wrong(shell: Shell) -> None:
    assert shell("secrets", "set", "A", stdin="v", SECRETS_ENCRYPTION_KEY="ab" * 32).code == 0

    keys = [{"SECRETS_ENCRYPTION_KEY": "ab" * 32}, {"SECRETS_ENCRYPTION_KEY": "cd" * 32}, {}]
    right, other, none = shell.each("doctor", "--json", given=keys)

    assert (right.code, other.code, none.code) == (0, 2, 2)
    assert "from SECRETS_ENCRYPTION_KEY; it opens all of 1 secrets" in checks(right)["key"]["said"]
    assert "1 of 1 stored secrets do not open" in checks(other)["key"]["said"]
    assert "1 of 1 stored secrets do not open with no key" in checks(none)["key"]["said"]


def test_production_without_a_key_and_a_key_of_the_wrong_length_are_wrong(shell: Shell) -> None:
    for ran in shell.each("doctor", "--json", given=[{"MOLECULE_ENV": "production"}, {"SECRETS_ENCRYPTION_KEY": "abc"}]):
        assert ran.code == 2
        assert checks(ran)["key"]["verdict"] == "wrong"
        assert "64 hex digits" in checks(ran)["key"]["mend"]


def test_a_redis_that_does_not_answer_is_a_warning(shell: Shell, redis_url: Secret) -> None:
    urls = ["redis://:hunter2@127.0.0.1:1/0", redis_url.reveal()]
    away, there = shell.each("doctor", "--json", given=[{"REDIS_URL": url} for url in urls])

    assert (away.code, there.code) == (0, 0)
    assert {checks(away)[name]["verdict"] for name in ("redis", "broker")} == {"warning"}
    assert {checks(there)[name]["said"] for name in ("redis", "broker")} == {"it answers"}
    assert redis_url.reveal() not in there.out


def test_no_docker_engine_is_three_when_workspaces_run_there(shell: Shell, tmp_path: Path) -> None:
    ran = shell("doctor", "--json", MOLECULE_BACKEND="docker", DOCKER_HOST=f"unix://{tmp_path}/docker.sock")
    found = checks(ran)

    assert ran.code == 3
    assert found["docker"]["said"] == "no Docker engine answers"
    assert "make docker-engine" in found["docker"]["mend"]
    assert "network" not in found
    assert found["build cache"]["verdict"] == "ok"


def test_what_builds_need_is_looked_at(shell: Shell, tmp_path: Path) -> None:
    docker = {"MOLECULE_BACKEND": "docker", "DOCKER_HOST": f"unix://{tmp_path}/docker.sock"}
    bare = {**docker, "PATH": str(tmp_path), "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX": "https://ada:hunter2@git.example/o/t-"}
    pulling = {**docker, "MOLECULE_IMAGE_REGISTRY": "r.example"}
    local, registry = map(checks, shell.each("doctor", "--json", given=[bare, pulling]))

    assert local["git"]["mend"] == "install git"
    assert local["templates"]["verdict"] == "wrong"
    assert registry["images"]["verdict"] == "wrong"


def test_a_git_server_that_does_not_answer_is_a_warning(shell: Shell, database: Database, tmp_path: Path) -> None:
    docker = {"MOLECULE_BACKEND": "docker", "DOCKER_HOST": f"unix://{tmp_path}/docker.sock", "MOLECULE_GITEA_TOKEN": "hunter2"}
    with served(receiver(database.engine, Cache(None), saas=False)) as server:
        there = f"http://127.0.0.1:{server.base_url.port}/o/t-"
        prefixes = [there, f"http://127.0.0.1:{embedded.free_port()}/o/t-", "https://git.invalid/o/t-"]
        given = [{**docker, "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX": prefix} for prefix in prefixes]
        answering, silent, unknown = (checks(ran)["templates"] for ran in shell.each("doctor", "--json", given=given))

    assert (answering["verdict"], answering["said"]) == ("ok", f"{there}…, with a token")
    assert (silent["verdict"], unknown["verdict"]) == ("warning", "warning")
    assert silent["said"].endswith(": no connection; builds wait until it answers")
    assert unknown["said"] == "https://git.invalid/o/t-…, with a token: its name does not resolve; builds wait until it answers"
    assert {silent["mend"], unknown["mend"]} == {"is the git server up, and reachable from here?"}


def test_a_receiver_is_known_by_its_answer(shell: Shell, database: Database) -> None:
    with served(receiver(database.engine, Cache(None), saas=False)) as ours, platform() as other:
        addresses = [{"MOLECULE_WORKER_RECEIVER_ADDR": f"127.0.0.1:{port}"} for port in (ours.base_url.port, other.port)]
        there, taken, elsewhere = shell.each("doctor", "--json", given=[*addresses, {"PLATFORM_URL": "http://p.example"}])

    assert (there.code, taken.code) == (0, 2)
    assert checks(there)["receiver"]["said"].startswith("it answers at ")
    assert checks(taken)["receiver"]["said"].startswith("another program answers at ")
    assert checks(elsewhere)["receiver"]["said"] == "not ours: workspaces register at PLATFORM_URL"


def test_what_is_held_back_is_said_with_who_and_why(shell: Shell, database: Database) -> None:
    assert shell("jobs", "pause", "kind", "workspace.delete", "--reason", "audit").code == 0
    with database.engine.begin() as connection:
        connection.execute(text("SELECT worker.pause('host', 'far', NULL, 'cli:me')"))

    found = checks(shell("doctor", "--json"))["pauses"]

    assert found["verdict"] == "warning"
    assert re.search(r"^paused: kind workspace.delete by cli:\S+ since .+, because audit; drained: node far by cli:", found["said"])
    assert found["mend"] == "molecule-worker jobs resume kind workspace.delete"


@pytest.mark.parametrize(
    ("slot", "verdict", "said"),
    [
        ("now() - interval '1 minute', now(), '{}'", "ok", "mend came round "),
        ("now() - interval '1 hour', now(), '{}'", "warning", "and should every 5 min"),
        ('now(), now(), \'{"error": "internal"}\'', "warning", "the last sweep of mend failed"),
    ],
)
def test_a_clock_is_known_by_its_last_slot(shell: Shell, database: Database, slot: str, verdict: str, said: str) -> None:
    with database.engine.begin() as connection:
        connection.execute(
            text(f"INSERT INTO worker.slots (schedule, started_at, finished_at, outcome, slot) VALUES ('mend', {slot}, now())")
        )

    found = checks(shell("doctor", "--json"))["clock"]

    assert found["verdict"] == verdict
    assert said in found["said"]


def test_a_client_role_without_its_rights_is_a_warning(shell: Shell, database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("REVOKE EXECUTE ON FUNCTION worker.enqueue FROM molecule_worker_client"))

    found = checks(shell("doctor", "--json"))["roles"]

    assert (found["verdict"], found["mend"]) == ("warning", "molecule-worker migrate")
