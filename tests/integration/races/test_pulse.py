from typing import Any

from sqlalchemy import create_engine

from tests.conftest import Database
from tests.waiting import until
from worker import assembly
from worker.errors import Unreachable


class Host:
    name, host, up = "docker", "local", False

    def version(self) -> str:
        if not self.up:
            raise Unreachable("ask engine: no answer")
        return "28"


def test_a_host_that_comes_back_is_served_also_when_that_could_not_be_recorded(database: Database) -> None:
    engine = create_engine(database.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    host: Any = Host()
    pulse = assembly.Pulse(host, lambda queue, there: assembly._serve(engine, 1, queue, there=there), every_s=0.05)
    with engine.connect():
        host.up = True
        until(lambda: pulse.beating, within=3)
    pulse.close()
    engine.dispose()
