"""Daemons that several tests share, because each costs seconds to start."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from docker import APIClient

from tests.conftest import Database, fresh_database, missing
from tests.demo_image import BUSYBOX, DEMO, engine
from tests.system.house import RUNTIME, House, house, settings_around
from worker.forge import Forge, make_template


@pytest.fixture(scope="package")
def shared_database(postgres: str) -> Iterator[Database]:
    """The database of the daemon over the in-memory backend."""
    with fresh_database(postgres) as fresh:
        yield fresh


@pytest.fixture(scope="package")
def memory_house(shared_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Four worker processes over the in-memory backend, whose world is a file and outlives every one of them. No Redis."""
    folder: Path = tmp_path_factory.mktemp("memory")
    with house(shared_database, folder, settings_around(shared_database, folder, processes=4)) as built:
        yield built


@pytest.fixture(scope="package")
def docker_database(postgres: str) -> Iterator[Database]:
    """The database of the daemon over Docker."""
    with fresh_database(postgres) as fresh:
        yield fresh


@pytest.fixture(scope="package")
def docker_house(docker_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Three worker processes over the machine's own engine, on a network of their own; the image is built by them."""
    client = engine()
    if not BUSYBOX.exists() or shutil.which("git") is None:
        missing("git or a static busybox (apt-get install git busybox-static)")
    folder: Path = tmp_path_factory.mktemp("docker")
    network = f"molecule-kill-{uuid4().hex[:8]}"
    with _template(folder) as prefix, _swept(client, network):
        around = settings_around(
            docker_database,
            folder,
            backend="docker",
            processes=3,
            MOLECULE_WORKER_NETWORK=network,
            MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX=prefix,
            MOLECULE_LOCAL_BUILD_CACHE=str(folder / "builds"),
        )
        with house(docker_database, folder, around) as built:
            yield built
            left = [image for (image,) in built.rows("SELECT reference FROM worker.builds WHERE reference IS NOT NULL")]
        for image in left:
            client.remove_image(image, force=True)


@contextmanager
def _template(folder: Path) -> Iterator[str]:
    """A git server with the demo runtime's template, as a commit that nobody else has."""
    forge = Forge(folder / "git")
    try:
        template = make_template(DEMO, BUSYBOX, folder / "template")
        (template / "NONCE").write_text(uuid4().hex)
        forge.publish(RUNTIME, template)
        yield forge.prefix
    finally:
        forge.close()


@contextmanager
def _swept(client: APIClient, network: str) -> Iterator[None]:
    """Whatever a failed test left on this network is removed with it."""
    try:
        yield
    finally:
        for found in client.containers(all=True, filters={"network": network}):
            client.remove_container(found["Id"], force=True, v=True)
        for found in client.networks(names=[network]):
            client.remove_network(found["Id"])
        client.close()
