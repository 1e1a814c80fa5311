"""A daemon under test: its process tree, the wishes it reads, the ledger it writes, and the rows it leaves."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from config import settings as environment
from tests.conftest import Database
from tests.system.dying import LEDGER
from tests.waiting import until
from worker import embedded
from worker.assembly import compute_of
from worker.backends.docker import DockerCompute
from worker.backends.memory import MemoryCompute
from worker.cli.daemon import bring_to_head
from worker.domain import Placement, ThingKind
from worker.new_workspace import NewWorkspace
from worker.store import requests, workspaces

ROOT = Path(__file__).parent.parent.parent
RUNTIME = "langgraph"
REST = ("succeeded", "failed", "cancelled", "blocked")
#: Seconds for what takes milliseconds on an idle machine; reached only when something is wrong.
PATIENCE = 60.0


@dataclass
class House:
    """One daemon over one database. `around` is its environment, `folder` its scratch and its ledger."""

    database: Database
    folder: Path
    around: Mapping[str, str]
    module: str = "tests.system.dying"
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    # ---- the process tree

    def start(self) -> None:
        """Start it and wait until as many processes as are wanted serve the host's queue."""
        began = len(self.lines("ready"))
        wanted = began + int(self.around["MOLECULE_WORKER_PROCESSES"])
        with (self.folder / "daemon.log").open("ab") as log:
            argv = [sys.executable, "-m", self.module, str(self.folder)]
            self.process = subprocess.Popen(argv, env=dict(self.around), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(lambda: len(self.lines("ready")) >= wanted, within=PATIENCE, what=f"daemon ready; see {self.folder / 'daemon.log'}")

    def signal(self, number: int) -> None:
        """Send the parent a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self, within: float = PATIENCE) -> int:
        """Wait for the parent; its exit code."""
        assert self.process is not None
        code = self.process.wait(within)
        self.process = None
        return code

    def end(self) -> None:
        """Make sure that nothing of it runs any more; twice SIGTERM, because a test that is over need not wait for commits."""
        if self.process is None:
            return
        for _ in range(2):
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.3)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def pids(self) -> set[int]:
        """Worker processes that live, by their own rows."""
        rows = self.rows("SELECT pid FROM worker.processes WHERE lease_until > clock_timestamp()")
        return {pid for (pid,) in rows if lives(pid)}

    def children(self) -> set[int]:
        """Every process that the parent forked."""
        assert self.process is not None
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return {int(pid) for pid in listed.split()}

    # ---- wishes and the ledger

    def wish(self, job: str, spot: str, act: str) -> None:
        """`spot` is `<direction>.<step>.<moment>`, `act` kill, hold or refuse."""
        (self.folder / f"{job}.{spot}.{act}").touch()

    def granted(self, job: str, spot: str, act: str) -> bool:
        """Whether it happened."""
        return (self.folder / f"{job}.{spot}.{act}.granted").exists()

    def grant_again(self, job: str, spot: str, act: str) -> None:
        """The same wish once more."""
        (self.folder / f"{job}.{spot}.{act}.granted").rename(self.folder / f"{job}.{spot}.{act}")

    def withdraw(self, job: str, spot: str, act: str) -> None:
        """No such wish any more."""
        (self.folder / f"{job}.{spot}.{act}").unlink()

    def release(self, job: str, spot: str) -> None:
        """Let a held step go on."""
        (self.folder / f"{job}.{spot}.release").touch()

    def lines(self, what: str | None = None, job: str | None = None) -> list[dict[str, Any]]:
        """The ledger, in the order in which it was written."""
        ledger = self.folder / LEDGER
        # Up to the last line's end, because somebody may be writing: a file grows by pages and not by lines.
        written = ledger.read_text().rpartition("\n")[0] if ledger.exists() else ""
        found = [json.loads(line) for line in written.splitlines()]
        return [line for line in found if what in {None, line["what"]} and job in {None, line.get("job")}]

    def spots(self, job: str) -> list[str]:
        """Every boundary that a job came by, once each."""
        return list(dict.fromkeys(f"{at['direction']}.{at['step']}.{at['moment']}" for at in self.lines("reached", job)))

    def said(self) -> list[str]:
        """The lines of the daemon's log."""
        return (self.folder / "daemon.log").read_text().splitlines()

    def tell(self, sentence: str) -> None:
        """Say what was done to the daemon, for whoever reads the test's output."""
        print(f"\n{self.around['MOLECULE_BACKEND']}: {sentence}")  # noqa: T201  because pytest shows it on failure and with -s

    # ---- jobs and workspaces

    def create(self, *wishes: tuple[str, str]) -> tuple[str, str]:
        """A workspace and its provision, with wishes (spot, act) that stand before the job can start: (workspace, job)."""
        wanted = NewWorkspace("kill", RUNTIME, 2)
        with self.database.engine.begin() as connection:
            own = self.settings
            workspace = workspaces.create(connection, wanted, Placement("", own.backend, own.docker_host), [RUNTIME])
            job = requests.enqueue(connection, "workspace.provision", {"workspace_id": workspace}, requested_by="test")[0]
            for spot, act in wishes:
                self.wish(job, spot, act)
        return str(workspace), job

    def delete(self, workspace: str, *wishes: tuple[str, str]) -> str:
        """The job that deletes it."""
        with self.database.engine.begin() as connection:
            job = requests.enqueue(connection, "workspace.delete", {"workspace_id": workspace}, requested_by="test")[0]
            for spot, act in wishes:
                self.wish(job, spot, act)
        return job

    def retry(self, job: str) -> None:
        """As an operator does."""
        with self.database.engine.begin() as connection:
            requests.retry(connection, job, requested_by="test")

    def ends(self, *jobs: str, within: float = PATIENCE) -> dict[str, str]:
        """The states of these jobs, once all of them rest or are blocked."""

        def states() -> dict[str, str]:
            found = dict(
                self.rows("SELECT id::text, state FROM worker.jobs WHERE id = ANY (CAST(:jobs AS uuid[]))", jobs=list(jobs))
            )
            return found if all(state in REST for state in found.values()) and len(found) == len(set(jobs)) else {}

        return until(states, within=within, what="all jobs at rest")

    def rows(self, statement: str, **values: Any) -> list[Any]:
        """Rows of the database."""
        with self.database.engine.connect() as connection:
            return list(connection.execute(text(statement), values).all())

    def value(self, statement: str, **values: Any) -> Any:
        """One value of the database."""
        return self.rows(statement, **values)[0][0]

    # ---- what is left

    @property
    def settings(self) -> environment.Settings:
        """As the daemon reads them."""
        return environment.load(self.around)

    @contextmanager
    def compute(self) -> Iterator[DockerCompute | MemoryCompute]:
        """The backend, asked from outside of the daemon and without its agents."""
        opened = compute_of(self.settings, self.database.engine)
        try:
            yield opened
        finally:
            opened.close()

    def live_faults(self, workspace: str) -> list[str]:
        """What is wrong with a workspace that should be online: nothing, when the list is empty."""
        with self.compute() as compute:
            things = compute.things(workspace)
            planned = {(thing.kind, thing.name) for thing in compute.plan(workspace, RUNTIME, 2)}
        listed = [(thing.kind, thing.name) for thing in things]
        facts = {
            "status": (self.status(workspace), "online"),
            "things": (Counter(listed), Counter(planned)),
            "containers": (sum(kind is ThingKind.CONTAINER for kind, _ in listed), 1),
            "live tokens": (self.live_tokens(workspace), 1),
            "events": (self.events(workspace), {"WORKSPACE_PROVISIONING": 1, "WORKSPACE_ONLINE": 1}),
            "ledger": (self.recorded(workspace), Counter({(str(kind), name, "exists"): 1 for kind, name in planned})),
        }
        return _differences(facts)

    def gone_faults(self, workspace: str, events: Mapping[str, int]) -> list[str]:
        """What is wrong with a workspace that should have left nothing but its history."""
        recorded = self.recorded(workspace)
        facts = {
            "status": (self.status(workspace), "removed"),
            "things": (self.things(workspace), []),
            "live tokens": (self.live_tokens(workspace), 0),
            "events": (self.events(workspace), dict(events)),
            "ledger": ([key for key in recorded if key[2] != "gone"], []),
        }
        return _differences(facts)

    def things(self, workspace: str) -> list[str]:
        """What a fresh listing shows of it."""
        with self.compute() as compute:
            return [thing.name for thing in compute.things(workspace)]

    def status(self, workspace: str) -> str:
        """The row's status."""
        return str(self.value("SELECT status FROM workspaces WHERE id = :w", w=workspace))

    def live_tokens(self, workspace: str) -> int:
        """How many tokens open the platform."""
        return int(
            self.value("SELECT count(*) FROM workspace_auth_tokens WHERE workspace_id = :w AND revoked_at IS NULL", w=workspace)
        )

    def events(self, workspace: str) -> dict[str, int]:
        """How many events of each type."""
        return dict(self.rows("SELECT event_type, count(*) FROM structure_events WHERE workspace_id = :w GROUP BY 1", w=workspace))

    def recorded(self, workspace: str) -> Counter[tuple[str, str, str]]:
        """Rows of the ledger of outside things: (kind, name, state)."""
        return Counter(
            map(tuple, self.rows("SELECT kind, name, state FROM worker.ledger WHERE subject = :s", s=f"workspace:{workspace}"))
        )

    def takeovers(self, job: str | None = None) -> Counter[str]:
        """How often work was taken over, by what."""
        rows = self.rows(
            "SELECT detail ->> 'by', count(*) FROM worker.job_events WHERE what = 'taken_over' "
            "AND (CAST(:job AS uuid) IS NULL OR job_id = :job) GROUP BY 1",
            job=job,
        )
        return Counter(dict(map(tuple, rows)))

    def holder(self, job: str) -> int:
        """The pid of the process that holds the job."""
        return int(
            self.value("SELECT p.pid FROM worker.jobs j JOIN worker.processes p ON p.id = j.process_id WHERE j.id = :j", j=job)
        )

    def holders(self) -> set[int]:
        """The pids of all processes that are at work right now."""
        return {
            pid
            for (pid,) in self.rows(
                "SELECT p.pid FROM worker.jobs j JOIN worker.processes p ON p.id = j.process_id WHERE j.state = 'running'"
            )
        }

    def effects(self, jobs: Sequence[str]) -> Counter[tuple[str, str, str]]:
        """How often each effect of these jobs began, but for those that answered "not yet" or failed."""
        began: Counter[tuple[str, str, str]] = Counter()
        wanted = set(jobs)
        for line in self.lines():
            if line.get("job") in wanted and line["what"] in {"enter", "leave"}:
                key = (line["job"], line["direction"], line["step"])
                began[key] += 1 if line["what"] == "enter" else -1 if not line["done"] else 0
        return began


def lives(pid: int) -> bool:
    """Whether there is such a process that is not a zombie in the kernel's sense."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def stop(pid: int, number: int = signal.SIGKILL) -> None:
    """Send one process a signal."""
    os.kill(pid, number)


def settings_around(
    database: Database, folder: Path, *, backend: str = "memory", processes: int = 2, **more: str
) -> dict[str, str]:
    """The environment of a daemon: nothing of the caller's own settings, a state folder and a port of its own."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
    return {
        **kept,
        "DATABASE_URL": database.url.reveal(),
        "MOLECULE_BACKEND": backend,
        "MOLECULE_WORKER_STATE_DIR": str(folder / "state"),
        "MOLECULE_WORKER_RECEIVER_ADDR": f"127.0.0.1:{embedded.free_port()}",
        "MOLECULE_WORKER_ADMIN_ADDR": f"127.0.0.1:{embedded.free_port()}",
        "MOLECULE_WORKER_PROCESSES": str(processes),
        "MOLECULE_WORKER_SLOTS": "16",
        **more,
    }


@contextmanager
def house(
    database: Database,
    folder: Path,
    around: Mapping[str, str],
    *,
    module: str = "tests.system.dying",
    before: Callable[[House], None] = lambda _house: None,
) -> Iterator[House]:
    """A daemon that runs, and is gone at the end. `before` prepares what it finds when it starts."""
    folder.mkdir(parents=True, exist_ok=True)
    built = House(database, folder, around, module)
    bring_to_head(built.settings)
    before(built)
    try:
        built.start()
        yield built
    finally:
        built.end()


def _differences(facts: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{name}: {seen} instead of {wanted}" for name, (seen, wanted) in facts.items() if seen != wanted]
