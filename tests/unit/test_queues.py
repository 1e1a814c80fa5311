import pytest

from config.settings import load
from tasks.catalogue import KINDS
from tests.toys import toy_kind
from worker.engine.kinds import Kind
from worker.errors import Misconfigured
from worker.queues import served, serves_host

OWN = Kind(toy_kind("keys.rewrap").machine, "keys", "id", toy_kind().args, "keys.rewrap")


def test_a_process_serves_its_host_and_every_queue_of_a_kind() -> None:
    assert served(load({}), [*KINDS, OWN]) == ["jobs", "docker.local", "keys.rewrap"]
    assert served(load({"MOLECULE_BACKEND": "memory", "MOLECULE_WORKER_DOCKER_HOST_NAME": "b"}), KINDS) == ["jobs", "memory.b"]


def test_named_queues_are_all_that_is_served_besides_the_default_one() -> None:
    named = load({"MOLECULE_WORKER_QUEUES": " keys.rewrap,, "})

    assert served(named, [OWN]) == ["jobs", "keys.rewrap"]
    assert not serves_host(named)
    assert serves_host(load({"MOLECULE_WORKER_QUEUES": "keys.rewrap,docker.local"}))


def test_a_queue_that_nothing_is_sent_to_is_refused_with_those_that_exist() -> None:
    with pytest.raises(Misconfigured, match=r"no queue is named docker\.elsewhere") as refused:
        served(load({"MOLECULE_WORKER_QUEUES": "docker.elsewhere,jobs"}), [OWN])

    assert refused.value.hint == "this host has jobs, docker.local, keys.rewrap"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_that_belongs_to_no_host_has_the_queue_that_bears_its_name(kind: Kind) -> None:
    assert kind.queue in {None, kind.name}
