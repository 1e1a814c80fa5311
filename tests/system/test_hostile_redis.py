"""A Redis that is wiped, cut off, frozen, killed, full, robbed and flooded while jobs run; and one that never starts.

The daemon's own look around is far away, so whatever begins was rung for: a job that ends shows that bells are heard again.
"""

import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from uuid import uuid4

import httpx
import pytest
from celery import Celery
from redis import Redis as Client
from redis.exceptions import RedisError

from tests.conftest import Database
from tests.system import outages
from tests.system.hostile import KINDS
from tests.system.house import PATIENCE, House, house, settings_around
from tests.system.load import Load, prepare
from tests.system.size import full
from tests.waiting import until
from worker import embedded

SUBJECTS = 60 if full() else 4
ROUNDS = 10 if full() else 1
#: Seconds that an outage lasts.
OUTAGE_S = 3.0 if full() else 1.0
POLL_S = 600.0
COPIES = 5
PREFIX = "molecule-worker:"


@dataclass
class Storm:
    """What befalls Redis, counted."""

    redis: outages.Redis
    client: Client
    producer: Celery
    load: Load
    did: Counter[str] = field(default_factory=Counter)

    def wipe(self) -> None:
        """Again and again while bells go out."""
        for _ in range(5):
            self.client.flushall()
            self.did["flushes"] += 1
            Event().wait(OUTAGE_S / 10)

    def cut(self) -> None:
        """Every connection, those of the consumers and of whoever rings."""
        for _ in range(3):
            self.did["clients killed"] += int(self.client.client_kill_filter(_type="normal", skipme=True))
            Event().wait(OUTAGE_S / 10)

    def freeze(self) -> None:
        """It takes connections and answers none."""
        os.kill(self.redis.pid, signal.SIGSTOP)
        Event().wait(OUTAGE_S)
        os.kill(self.redis.pid, signal.SIGCONT)
        self.did["freezes"] += 1

    def kill(self) -> None:
        """And start it again, empty."""
        self.redis.kill()
        Event().wait(OUTAGE_S / 2)
        self.redis.start()
        until(lambda: pings(self.client), what="Redis is back")
        self.did["kills"] += 1

    def fill(self) -> None:
        """Nothing can be written until there is room again, also not by who connects meanwhile."""
        self.client.config_set("maxmemory", "1mb")
        self.client.config_set("maxmemory-policy", "noeviction")
        self.client.client_kill_filter(_type="normal", skipme=True)
        Event().wait(OUTAGE_S)
        self.client.config_set("maxmemory", "0")
        self.did["times full"] += 1

    def rob(self) -> None:
        """Somebody else takes a bell: its job can only begin when it is rung for once more."""
        until(lambda: not self.load.left(), within=PATIENCE, what="quiet")
        with ThreadPoolExecutor(1) as thief:
            taken = None
            while taken is None:
                theft = thief.submit(self.client.brpop, [f"{PREFIX}jobs"], timeout=3)
                # Redis serves whoever has waited longest, and the workers stand in line anew each second.
                Event().wait(1.2)
                self.load.store(1, kinds=KINDS[:1])
                taken = theft.result()
        self.did["bells stolen"] += 1
        until(lambda: not self.load.left(), within=PATIENCE, what="rung for once more")

    def flood(self) -> None:
        """Every message five times, also for jobs that are over, that never were, and that are none."""
        before = list(self.load.subject_of)
        for job in [*before[-12:], *self.load.store(1), *(str(uuid4()) for _ in range(10)), "no id"]:
            for _ in range(COPIES):
                self.producer.send_task(KINDS[0].name, kwargs={"job": job})
                self.did["messages of others"] += 1


def pings(client: Client) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


ACTS: tuple[Callable[[Storm], None], ...] = (Storm.rob, Storm.wipe, Storm.cut, Storm.freeze, Storm.kill, Storm.fill, Storm.flood)


def bells(under: House, name: str) -> int:
    """A counter of the daemon's own, over all kinds."""
    page = httpx.get(f"http://{under.around['MOLECULE_WORKER_ADMIN_ADDR']}/metrics", timeout=10, trust_env=False).text
    return int(sum(float(value) for value in re.findall(rf"^molecule_worker_{name}_total\S* (\S+)$", page, re.MULTILINE)))


def heard(under: House, jobs: list[str], after: str) -> None:
    until(lambda: all(under.lines("enter", job) for job in jobs), within=PATIENCE, what=f"bells heard after {after}")


def test_whatever_befalls_redis_every_job_ends_and_bells_are_heard_again(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with outages.redis(tmp_path / "redis") as redis:
        url = redis.url.reveal()
        around = settings_around(
            database, tmp_path, CELERY_BROKER_URL=url, MOLECULE_WORKER_POLL_S=str(POLL_S), MOLECULE_WORKER_SLOTS="4"
        )
        with (
            house(database, tmp_path, around, module="tests.system.hostile", before=prepare) as under,
            Client.from_url(url) as client,
            Celery("somebody", broker=url, set_as_current=False) as producer,
        ):
            producer.conf.update(broker_transport_options={"global_keyprefix": PREFIX}, task_default_queue="jobs")
            storm = Storm(redis, client, producer, Load(under))
            for act in ACTS * ROUNDS:
                storm.load.store(SUBJECTS)
                act(storm)
                heard(under, storm.load.store(1), act.__name__)
            until(lambda: not storm.load.left(), within=PATIENCE, what="all jobs at rest")

            lost, sent = bells(under, "dispatch_lost"), bells(under, "doorbells_sent")
            did = ", ".join(f"{count} {what}" for what, count in storm.did.items())
            with capsys.disabled():
                under.tell(f"hostile redis: {did}; {sent} doorbells sent, {lost} lost and rung again; {storm.load.summary()}")
            assert storm.load.faults() == []
            assert under.takeovers() == {}
            assert len(under.lines("ready")) == int(around["MOLECULE_WORKER_PROCESSES"])
            assert lost >= 1


def test_without_any_redis_the_same_jobs_run(database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nobody = f"redis://127.0.0.1:{embedded.free_port()}/0"
    around = settings_around(database, tmp_path, CELERY_BROKER_URL=nobody, MOLECULE_WORKER_SLOTS="4")
    with house(database, tmp_path, around, module="tests.system.hostile", before=prepare) as under:
        load = Load(under)
        for _ in range(ROUNDS):
            load.store(SUBJECTS)
            until(lambda: not load.left(), within=PATIENCE, what="all jobs at rest")

        with capsys.disabled():
            under.tell(f"no redis at all: {bells(under, 'doorbells_sent')} doorbells sent; {load.summary()}")
        assert load.faults() == []
        assert bells(under, "doorbells_sent") == 0
        assert sum("broker away" in line for line in under.said()) == 1
