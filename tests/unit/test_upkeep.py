"""What `up` does for a service of its stack that ended."""

from pathlib import Path

import pytest

from worker.domain import Secret
from worker.embedded import Service
from worker.errors import Misconfigured, Unreachable
from worker.upkeep import Upkeep


class Server:
    """Ends when told; `stays` or ends at once, `comes_up` or says why not."""

    def __init__(self, *, stays: bool = True, comes_up: bool = True) -> None:
        self.alive = True
        self.starts = 0
        self._stays = stays
        self._comes_up = comes_up
        self.service = Service("redis", Secret("redis://h"), self._stop, self._ended, self._start, Path("redis.log"))

    def _stop(self) -> None:
        self.alive = False

    def _ended(self) -> bool:
        return not self.alive

    def _start(self) -> None:
        self.starts += 1
        if not self._comes_up:
            raise Misconfigured("start it: it did not come up")
        self.alive = self._stays


def test_a_service_that_runs_is_left_alone() -> None:
    server = Server()
    Upkeep([server.service]).look()

    assert server.starts == 0


def test_a_service_that_ended_is_started_again_at_once_and_no_other_one() -> None:
    one, other = Server(), Server()
    upkeep = Upkeep([one.service, other.service])
    one.alive = False
    upkeep.look()
    upkeep.look()

    assert (one.alive, one.starts, other.starts) == (True, 1, 0)


@pytest.mark.parametrize("server", [Server(stays=False), Server(comes_up=False)], ids=["ends at once", "does not come up"])
def test_a_service_that_does_not_stay_is_given_up_in_a_sentence(server: Server) -> None:
    upkeep = Upkeep([server.service], pauses=(0.0, 0.0, 0.0))
    server.alive = False
    for _ in range(3):
        upkeep.look()
    with pytest.raises(Unreachable, match="its redis ended 4 times in a row") as caught:
        upkeep.look()

    assert server.starts == 3
    assert caught.value.hint == "read redis.log"


def test_a_service_that_ends_again_and_again_is_not_started_before_its_time() -> None:
    server = Server(stays=False)
    upkeep = Upkeep([server.service], pauses=(0.0, 600.0))
    server.alive = False
    for _ in range(3):
        upkeep.look()

    assert server.starts == 1
