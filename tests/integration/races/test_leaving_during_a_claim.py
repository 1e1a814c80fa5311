from threading import Event, Timer
from typing import Any

from worker.engine.intake import Intake
from worker.engine.machine import Direction
from worker.engine.walk import Claimed

JOB = Claimed("j", "toy.make", "toy:1", {}, ["s1"], False, Direction.FORWARD, 0, 0, 1, None)


def test_what_a_claim_brings_home_during_the_shutdown_is_driven() -> None:
    claiming, answer = Event(), Event()
    driven: list[Any] = []

    class Slow:
        def claim(self, _queues: Any, _most: int, _ids: Any = None) -> Any:
            claiming.set()
            answer.wait(5)
            return [JOB]

    intake = Intake(Slow(), driven.append, lambda: ["toy"], slots=2, poll_s=0.05, on_lost=lambda _: answer.set())
    intake.start()
    claiming.wait(5)
    Timer(0.2, answer.set).start()

    assert intake.close(within_s=3)
    assert driven == [JOB]
