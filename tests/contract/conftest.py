"""The worlds that the contract suites run in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from docker import APIClient

from tests.contract.worlds import DockerWorld, MemoryWorld, World
from tests.demo_image import DemoImages, demo_images, engine


@pytest.fixture(scope="session")
def docker_client() -> Iterator[APIClient]:
    """A client of the machine's engine."""
    client = engine()
    yield client
    client.close()


@pytest.fixture(scope="session")
def images(docker_client: APIClient) -> Iterator[DemoImages]:
    """The demo runtime's images."""
    yield from demo_images(docker_client)


@pytest.fixture(scope="session")
def network(docker_client: APIClient) -> Iterator[str]:
    """The name of a network of the tests' own, made by the first backend that needs it."""
    name = f"molecule-worker-tests-{uuid4().hex[:12]}"
    yield name
    for found in docker_client.networks(names=[name]):
        docker_client.remove_network(found["Id"])


@contextmanager
def docker_world(client: APIClient, images: DemoImages, network: str) -> Iterator[DockerWorld]:
    """A world whose leftovers are removed."""
    world = DockerWorld(client, images, network)
    try:
        yield world
    finally:
        world.close()


@pytest.fixture
def on_docker(docker_client: APIClient, images: DemoImages, network: str) -> Iterator[DockerWorld]:
    """The real engine."""
    with docker_world(docker_client, images, network) as world:
        yield world


@pytest.fixture(params=["memory", "docker"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """Each world in turn."""
    if request.param == "memory":
        return MemoryWorld(tmp_path / "world.json")
    found: World = request.getfixturevalue("on_docker")
    return found
