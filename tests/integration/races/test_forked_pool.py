import os
from typing import Any
from uuid import uuid4

from config import celery as knobs
from config import settings as environment
from worker import app as module


def test_a_worker_started_by_celery_itself_has_a_pool_of_threads() -> None:
    assert knobs.conf(environment.load({}))["worker_pool"] == "threads"


def test_a_bell_in_a_forked_child_leaves_the_parents_runtime_alone(monkeypatch: Any) -> None:
    answered: list[str] = []

    class Recorder:
        def answer(self, job_id: str) -> bool:
            answered.append(job_id)
            return True

    class Task:
        name = "workspace.delete"

    module.app.loader.import_default_modules()
    monkeypatch.setattr(module.app, "runtime", Recorder())
    monkeypatch.setattr(module.app, "home", os.getppid(), raising=False)
    module._ring(Task(), job=str(uuid4()))

    assert answered == []
