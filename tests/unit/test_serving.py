import pytest

from worker.engine.serving import command


@pytest.mark.parametrize(
    ("queue", "wanted"),
    [
        ("docker.far", "MOLECULE_WORKER_DOCKER_HOST_NAME=far molecule-worker run"),
        ("docker.far.example", "MOLECULE_WORKER_DOCKER_HOST_NAME=far.example molecule-worker run"),
        ("docker.a b", "MOLECULE_WORKER_DOCKER_HOST_NAME='a b' molecule-worker run"),
        ("memory.far", "MOLECULE_BACKEND=memory MOLECULE_WORKER_DOCKER_HOST_NAME=far molecule-worker run"),
        ("tenants", "molecule-worker run --queues tenants"),
        ("tenant.provision", "molecule-worker run --queues tenant.provision"),
    ],
)
def test_a_hosts_queue_is_served_under_that_hosts_name_and_a_kinds_by_naming_it(queue: str, wanted: str) -> None:
    assert command(queue) == wanted
