"""What the tests of image builds share: a template that builds from nothing, and a place with everything around it."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from docker import APIClient
from docker.errors import DockerException
from sqlalchemy import text

from tests.conftest import Database, missing
from worker.domain import Secret
from worker.forge import Forge, make_template
from worker.images.local import Limits, LocalImages

RUNTIMES = ("langgraph", "hermes")
BUSYBOX = Path("/bin/busybox")
#: No command runs in it, because starting a container is what takes time in a build.
QUICK = 'FROM scratch\nCOPY nonce /nonce\nCMD ["/busybox", "true"]\n'


def running(*command: str) -> str:
    """A Dockerfile that runs a command of busybox."""
    words = json.dumps(["/busybox", *command])
    return f'FROM scratch\nCOPY busybox /busybox\nCOPY nonce /nonce\nRUN {words}\nCMD ["/busybox", "true"]\n'


def open_docker() -> APIClient:
    return APIClient(version="auto", timeout=20)


def no_docker() -> APIClient:
    raise AssertionError("Docker must not be asked")


@dataclass
class Bench:
    """One host, one forge, one database; any number of worker processes."""

    folder: Path
    database: Database
    forge: Forge
    stack: ExitStack
    token: Secret | None = None
    installation: str = field(default_factory=lambda: f"test-{uuid4().hex}")

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def process(self, *, alive: bool = True) -> int:
        lease = "1 hour" if alive else "-1 second"
        with self.database.engine.begin() as connection:
            return int(
                connection.scalar(
                    text(
                        "INSERT INTO worker.processes (name, pid, lease_until)"
                        " VALUES ('test', 1, clock_timestamp() + CAST(:lease AS interval)) RETURNING id"
                    ),
                    {"lease": lease},
                )
                or 0
            )

    def worker(
        self, *, docker: Callable[[], APIClient] = open_docker, ceiling_s: float = 60, stall_s: float = 30, **changes: Any
    ) -> LocalImages:
        """The images of one more worker process."""
        process = self.process()
        values: dict[str, Any] = {
            "runtimes": RUNTIMES,
            "prefix": self.forge.prefix,
            "token": self.token,
            "cache": self.cache,
            "platform": "linux/amd64",
            "limits": Limits(ceiling_s, stall_s),
            "installation": self.installation,
            "host": "local",
            "process_id": lambda: process,
        }
        images = LocalImages(self.database.engine, docker, **{**values, **changes})
        self.stack.callback(images.close)
        return images

    def template(self, runtime: str = "langgraph", *, dockerfile: str = QUICK, **files: str) -> str:
        """Publish a template that no other test has; the commit."""
        folder = self.folder / f"template-{runtime}"
        source = folder.with_suffix(".source")
        source.mkdir(exist_ok=True)
        for name, content in {"Dockerfile": dockerfile, "nonce": uuid4().hex, **files}.items():
            (source / name.replace("__", ".")).write_text(content)
        make_template(source, BUSYBOX, folder)
        shutil.rmtree(source)
        return self.forge.publish(runtime, folder)

    def rows(self) -> list[Any]:
        with self.database.engine.connect() as connection:
            return list(connection.execute(text("SELECT * FROM worker.builds ORDER BY started_at")))

    def fetches(self) -> int:
        """How often a template was fetched, which is once for each build."""
        return len([request for request in self.forge.requests("git") if request.path.endswith("/info/refs")])

    def left_over(self) -> list[Path]:
        """What lies in the build cache below the folders of the runtimes."""
        return [path for path in self.cache.rglob("*") if path.parent != self.cache]


@contextmanager
def bench(folder: Path, database: Database, token: Secret | None = None) -> Iterator[Bench]:
    """A bench whose images are gone afterwards."""
    with ExitStack() as stack:
        forge = Forge(folder / "forge", token=token)
        stack.callback(forge.close)
        made = Bench(folder, database, forge, stack, token)
        stack.callback(_remove_images, made.installation)
        yield made


def engine_or_skip() -> None:
    if not BUSYBOX.exists():
        missing("a static busybox")
    try:
        open_docker().close()
    except DockerException:
        missing("a Docker engine")


def images_of(installation: str) -> list[dict[str, Any]]:
    client = open_docker()
    try:
        return list(client.images(filters={"label": f"molecule.image.installation={installation}"}))
    finally:
        client.close()


def _remove_images(installation: str) -> None:
    try:
        client = open_docker()
    except DockerException:
        return
    for image in client.images(filters={"label": f"molecule.image.installation={installation}"}):
        client.remove_image(image["Id"], force=True)
    client.close()
