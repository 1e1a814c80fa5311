"""A private RabbitMQ node: its own folder, ports, password and port mapper, all on loopback; nothing of it outlives its test."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import until
from worker import embedded
from worker.domain import Secret

#: The program itself, because the one that Debian puts on PATH changes to a user of its own and cannot see a test's folder.
_DEBIANS = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
USER = "worker"
VHOST = "doorbells"
#: Seconds from start to the open port; about 4 on an idle machine.
_START_S = 120.0


def program() -> str | None:
    """Where rabbitmq-server is, None where it or Erlang's port mapper is not."""
    found = str(_DEBIANS) if _DEBIANS.exists() else shutil.which("rabbitmq-server")
    return found if shutil.which("epmd") else None


@dataclass
class Rabbit:
    """One node that may be killed and started again at the same address; what it stored it finds again."""

    folder: Path
    port: int
    password: str
    running: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def url(self) -> Secret:
        """As CELERY_BROKER_URL wants it."""
        return Secret(f"amqp://{USER}:{self.password}@127.0.0.1:{self.port}/{VHOST}")

    @property
    def pid(self) -> int:
        """Of the node itself."""
        assert self.running is not None
        return self.running.pid

    def start(self) -> None:
        """Until it accepts connections."""
        with (self.folder / "node.log").open("ab") as log:
            argv = [str(program())]
            self.running = subprocess.Popen(
                argv, env=self._around(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        until(self._listens, within=_START_S, what=f"RabbitMQ listens; see {self.folder / 'node.log'}")

    def kill(self) -> None:
        """`kill -9`, the whole of it."""
        if self.running is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.running.pid, signal.SIGKILL)
            self.running.wait()
            self.running = None

    def _listens(self) -> bool:
        assert self.running is not None
        assert self.running.poll() is None, f"RabbitMQ left; see {self.folder / 'node.log'}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True
        return False

    def _around(self) -> dict[str, str]:
        # No plugin is enabled; and schedulers that never spin, because the machine has other things to do.
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": (self.folder / "epmd.port").read_text(),
            # The node itself is our child then, and not a shell in between.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": "doorbells@localhost",
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none",
        }


@contextmanager
def rabbit(folder: Path) -> Iterator[Rabbit]:
    """A node that runs; ended however often it was killed."""
    node = Rabbit(folder, embedded.free_port(), secrets.token_urlsafe(16))
    _configure(node)
    # Ours and in the foreground, because the one that a node starts by itself would stay for ever.
    mapper = subprocess.Popen(
        ["epmd", "-port", (folder / "epmd.port").read_text(), "-address", "127.0.0.1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        node.start()
        yield node
    finally:
        node.kill()
        mapper.kill()
        mapper.wait()


def _configure(node: Rabbit) -> None:
    node.folder.mkdir(parents=True, exist_ok=True)
    (node.folder / "epmd.port").write_text(str(embedded.free_port()))
    (node.folder / "plugins").write_text("[].\n")
    conf = node.folder / "rabbitmq.conf"
    conf.touch(mode=0o600)
    conf.write_text(
        f"listeners.tcp.1 = 127.0.0.1:{node.port}\ndistribution.listener.port_range.min = {(port := embedded.free_port())}\n"
        f"distribution.listener.port_range.max = {port}\ndefault_user = {USER}\ndefault_pass = {node.password}\ndefault_vhost = {VHOST}\n"
        "log.console = true\nlog.file = false\n"
    )
