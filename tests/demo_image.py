"""Builds the demo runtime and its broken brothers through the engine's API, because no registry can be reached."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from docker import APIClient
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env

from tests.conftest import missing

DEMO = Path(__file__).parent.parent / "docker" / "demo-runtime"
BUSYBOX = Path("/bin/busybox")


@dataclass(frozen=True)
class DemoImages:
    """References of images that live as long as the tests."""

    runtime: str  #: the demo runtime
    crashing: str  #: ends at once, again and again
    unstartable: str  #: names a user that it does not have


def engine() -> APIClient:
    """A client of the machine's engine; the test is skipped where none answers."""
    try:
        return APIClient(version="auto", timeout=60, **kwargs_from_env())
    except DockerException:
        missing("a Docker engine (sudo make docker-engine)")
        raise


def demo_images(client: APIClient) -> Iterator[DemoImages]:
    """Build them; remove them when the generator is resumed."""
    if not BUSYBOX.exists():
        missing("a static busybox (apt-get install busybox-static)")
    tag = f"molecule-worker-tests-{uuid4().hex[:12]}"
    images = DemoImages(f"{tag}:runtime", f"{tag}:crashing", f"{tag}:unstartable")
    _build(client, images.runtime, {path.name: path.read_bytes() for path in DEMO.iterdir()} | {"busybox": BUSYBOX.read_bytes()})
    base = f"FROM {images.runtime}\n"
    _build(client, images.crashing, {"Dockerfile": f'{base}ENTRYPOINT ["/bin/busybox", "false"]\n'.encode()})
    # Not a missing entry point: the init process that every workspace has is started first, and tells the engine nothing.
    _build(client, images.unstartable, {"Dockerfile": f"{base}USER nobody-here\n".encode()})
    yield images
    for image in (images.crashing, images.unstartable, images.runtime):
        client.remove_image(image, force=True)


def grants_privileges(client: APIClient, image: str) -> bool:
    """Whether this engine can start a privileged container: asked of the engine itself, because some machines' kernels say no."""
    config = {"Image": image, "Entrypoint": ["/bin/busybox", "true"], "HostConfig": {"Privileged": True, "PidMode": "host"}}
    make: Any = client.create_container_from_config
    probe: str = make(config)["Id"]
    try:
        client.start(probe)
    except APIError:
        return False
    else:
        return True
    finally:
        client.remove_container(probe, force=True)


def _build(client: APIClient, tag: str, files: dict[str, bytes]) -> None:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    context.seek(0)
    answers = list(client.build(fileobj=context, custom_context=True, tag=tag, rm=True, forcerm=True, decode=True))
    assert not [answer for answer in answers if "error" in answer], answers
