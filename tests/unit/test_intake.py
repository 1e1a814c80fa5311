"""What a process says that it drives."""

from collections.abc import Sequence
from threading import Event, Thread

from worker.engine.intake import Intake
from worker.engine.machine import Direction
from worker.engine.walk import Claimed

JOB = Claimed(
    "j",
    "toy.make",
    "toy:1",
    {},
    ("s1",),
    only_forward=False,
    direction=Direction.FORWARD,
    position=0,
    attempt=0,
    fence=1,
    stop=None,
)


class Claims:
    """Where one job is always due."""

    def claim(self, queues: Sequence[str], most: int, ids: Sequence[str] | None = None) -> list[Claimed]:
        return [JOB]


def test_a_job_that_is_claimed_again_while_its_last_drive_leaves_is_still_driven() -> None:
    again, end = Event(), Event()

    def run(_job: Claimed) -> None:
        if not second.is_alive():
            second.start()
            assert again.wait(10)
            return
        again.set()
        assert end.wait(10)

    intake = Intake(Claims(), run, list, slots=2, poll_s=1, on_lost=lambda _: None)
    second = Thread(target=lambda: intake.answer("j"))
    intake.answer("j")

    assert intake.driving() == frozenset({"j"})
    end.set()
    second.join()
    assert intake.driving() == frozenset()
