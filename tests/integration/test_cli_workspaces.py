import json
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text

from tasks.catalogue import KINDS
from tests.commands import Shell, rows
from tests.conftest import Database
from tests.toys import remember


@pytest.fixture
def shell(database: Database, tmp_path: Path) -> Shell:
    remember(database, *KINDS)
    return Shell(
        {"DATABASE_URL": database.url.reveal(), "MOLECULE_BACKEND": "memory", "MOLECULE_WORKER_STATE_DIR": str(tmp_path / "state")}
    )


def test_a_workspace_is_stored_with_its_job_and_its_id_is_the_only_output(shell: Shell, database: Database) -> None:
    ran = shell("workspaces", "create", "--name", "Zoë ✓", "--runtime", "crewai", "--tier", "3", "--role", "reads", "--org", "acme")

    assert ran.code == 0, ran.err
    with database.engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM workspaces")).one()
        job = connection.execute(text("SELECT * FROM worker.jobs")).one()
    assert ran.out == f"{row.id}\n"
    assert (row.name, row.runtime, row.tier, row.role) == ("Zoë ✓", "crewai", 3, "reads")
    assert (job.kind, job.subject, job.org, job.queue) == ("workspace.provision", f"workspace:{row.id}", "acme", "memory.local")
    assert ran.err.splitlines() == [
        "nothing belongs to the organisation acme yet",
        f"is being provisioned: molecule-worker jobs watch {job.id}",
    ]
    assert "organisation" not in shell("workspaces", "create", "--name", "b", "--org", "acme").err


def test_json_names_the_workspace_and_its_job(shell: Shell) -> None:
    made = json.loads(shell("workspaces", "create", "--name", "a", "--json").out)

    assert set(made) == {"workspace_id", "job_id"}
    shown = json.loads(shell("workspaces", "show", made["workspace_id"].upper(), "--json").out)
    assert (shown["id"], shown["status"], shown["host"]) == (made["workspace_id"], "provisioning", "memory.local")
    assert [job["id"] for job in shown["jobs"]] == [made["job_id"]]


@pytest.mark.parametrize("tier", [0, None])
def test_a_row_without_a_proper_tier_means_two(shell: Shell, database: Database, tier: int | None) -> None:
    with database.engine.begin() as connection:
        made = connection.execute(text("INSERT INTO workspaces (name, tier) VALUES ('old', :tier) RETURNING id"), {"tier": tier})
        ident = str(made.scalar_one())

    assert json.loads(shell("workspaces", "show", ident, "--json").out)["tier"] == 2
    assert shell("enqueue", "workspace.provision", f"workspace_id={ident}").code == 0


def test_names_of_other_programs_cannot_drive_the_terminal(shell: Shell, database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("INSERT INTO workspaces (name) VALUES (:name)"), {"name": "a\x1b[2J\nb" + "漢" * 80})

    code, shown = shell.on_terminal("workspaces", "list")
    lines = shown.splitlines()

    assert code == 0
    assert "\x1b" not in shown
    assert len(lines) == 2
    assert len(lines[1]) + lines[1].count("漢") <= 80
    assert "…" in lines[1]


def test_the_first_digits_show_a_workspace_but_do_not_delete_it(shell: Shell, database: Database) -> None:
    ident = shell("workspaces", "create", "--name", "a").out.strip()

    assert json.loads(shell("workspaces", "show", ident[:8], "--json").out)["id"] == ident
    assert shell("workspaces", "delete", ident[:8], "--dry-run").code == 0
    ran = shell("workspaces", "delete", ident[:8])
    assert (ran.code, ran.hint) == (4, f"molecule-worker workspaces delete {ident}")
    assert rows(database)["worker.jobs"] == 1
    assert shell("workspaces", "delete", ident.upper()).code == 0


def test_a_list_of_workspaces_fits_eighty_columns_with_names_whole(shell: Shell) -> None:
    shell("workspaces", "create", "--name", "a name of some thirty letters", "--runtime", "claude-code")

    _, shown = shell.on_terminal("workspaces", "list")

    heading, line = shown.splitlines()
    assert heading.split() == ["id", "name", "status", "runtime", "tier"]
    assert "a name of some thirty letters" in line
    assert len(line) <= 80


def test_a_parent_is_not_deleted_over_its_children(shell: Shell, database: Database) -> None:
    parent = shell("workspaces", "create", "--name", "parent").out.strip()
    child = shell("workspaces", "create", "--name", "child", "--parent", parent).out.strip()
    before = rows(database)

    ran = shell("workspaces", "delete", parent)

    assert (ran.code, ran.error) == (4, f"delete workspace: it has 1 child: child ({child})")
    assert ran.hint == "delete the children first"
    assert rows(database) == before


def test_a_dry_run_says_what_would_go_and_stores_nothing(shell: Shell, database: Database) -> None:
    ident = shell("workspaces", "create", "--name", "a").out.strip()
    before = rows(database)

    ran = shell("workspaces", "delete", ident, "--dry-run")

    assert (ran.code, ran.out, ran.err) == (0, "", "would remove a: nothing exists outside\n")
    assert rows(database) == before


def test_a_deletion_prints_its_job_and_takes_over_the_provision(shell: Shell, database: Database) -> None:
    ident = shell("workspaces", "create", "--name", "a").out.strip()

    ran = shell("workspaces", "delete", ident)

    with database.engine.connect() as connection:
        states = {row.kind: row.state for row in connection.execute(text("SELECT kind, state FROM worker.jobs"))}
        job = connection.execute(text("SELECT id::text FROM worker.jobs WHERE kind = 'workspace.delete'")).scalar_one()
    assert (ran.code, ran.out) == (0, f"{job}\n")
    assert states == {"workspace.provision": "cancelled", "workspace.delete": "queued"}


def test_logs_of_a_workspace_without_a_container_are_refused(shell: Shell) -> None:
    ident = shell("workspaces", "create", "--name", "a").out.strip()

    ran = shell("workspaces", "logs", ident)

    assert (ran.code, ran.out) == (2, "")
    assert ran.error.startswith("read logs: ")


def test_logs_of_a_failed_workspace_say_why_there_are_none(shell: Shell, database: Database) -> None:
    ident = shell("workspaces", "create", "--name", "a").out.strip()
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE workspaces SET status = 'failed'"))

    ran = shell("workspaces", "logs", ident)

    assert (ran.code, ran.error) == (2, "read logs: its provision failed, and what it printed went with its container")
    assert f"molecule-worker workspaces show {ident}" in ran.hint


def test_an_unknown_parent_stores_nothing(shell: Shell, database: Database) -> None:
    before = rows(database)

    assert shell("workspaces", "create", "--name", "a", "--parent", str(uuid4())).code == 2
    assert rows(database) == before
