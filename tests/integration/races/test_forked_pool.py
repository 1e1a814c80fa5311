import os
from typing import Any
from uuid import uuid4

import pytest

from config import celery as knobs
from config import settings as environment
from worker import app as module


def test_a_worker_started_by_celery_itself_has_a_pool_of_threads() -> None:
    assert knobs.conf(environment.load({}))["worker_pool"] == "threads"


@pytest.mark.parametrize("home", [os.getpid(), os.getppid()], ids=["its own process", "a fork of it"])
def test_a_bell_in_a_forked_child_leaves_the_parents_runtime_alone(home: int) -> None:
    answered: list[str] = []

    class Recorder:
        def answer(self, job_id: str) -> bool:
            answered.append(job_id)
            return True

    class Task:
        name = "workspace.delete"
        app: Any = module.WorkerApp("forked", set_as_current=False)

    module.app.loader.import_default_modules()
    Task.app.kinds, Task.app.runtime, Task.app.home = module.app.kinds, Recorder(), home
    module._ring(Task(), job=str(job := uuid4()))

    assert answered == ([str(job)] if home == os.getpid() else [])
