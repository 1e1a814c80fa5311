"""Redis and Postgres die under a working daemon, and come back; nobody lends a hand."""

from collections.abc import Sequence
from pathlib import Path

from redis import Redis as Client

from tests.system import outages
from tests.system.house import House, house, settings_around
from tests.waiting import until

#: Seconds for a provision without a single doorbell: a few looks of a second each.
UNRUNG_S = 20.0
SPOTS = ("forward.storage.before", "forward.container.rows", "forward.container.after", "forward.admit.committed")


def held(house: House, spots: Sequence[str] = SPOTS) -> dict[str, tuple[str, str, str]]:
    """A provision that stands at each of these spots: spot → workspace, job, spot."""
    made = {spot: (*house.create((spot, "hold")), spot) for spot in spots}
    until(lambda: all(house.granted(job, spot, "hold") for _, job, spot in made.values()), what="all held")
    return made


def end_well(house: House, made: Sequence[tuple[str, str]], within: float = UNRUNG_S) -> None:
    jobs = [job for _, job in made]
    assert set(house.ends(*jobs, within=within).values()) == {"succeeded"}
    assert {workspace: faults for workspace, _ in made if (faults := house.live_faults(workspace))} == {}
    deletes = [house.delete(workspace) for workspace, _ in made]
    assert set(house.ends(*deletes, within=within).values()) == {"succeeded"}


def test_redis_wiped_killed_and_restarted_costs_nothing_but_a_second(postgres: str, tmp_path: Path) -> None:
    with outages.redis(tmp_path / "redis") as redis, outages.postgres() as own:
        around = settings_around(own.database, tmp_path, REDIS_URL=redis.url.reveal())
        with house(own.database, tmp_path, around) as under:
            made = held(under)
            with Client.from_url(redis.url.reveal()) as client:
                client.flushall()
            waiting = [under.create() for _ in range(4)]
            redis.kill()
            unrung = [under.create() for _ in range(4)]
            for _, job, spot in made.values():
                under.release(job, spot)
            end_well(under, [*((workspace, job) for workspace, job, _ in made.values()), *waiting, *unrung])
            redis.start()
            end_well(under, [under.create() for _ in range(2)])
            until(lambda: any("broker back" in line for line in under.said()), within=UNRUNG_S, what="the broker's return noticed")
            assert under.takeovers() == {}
            under.tell("redis wiped, killed, restarted: 10 provisions and 10 deletes ended, no takeover")


def test_a_postgres_that_restarts_under_the_daemon_needs_nobodys_hand(tmp_path: Path) -> None:
    with outages.postgres() as own, house(own.database, tmp_path, settings_around(own.database, tmp_path)) as under:
        restarts = 0
        made: list[tuple[str, str]] = []
        for _ in range(2):
            standing = held(under)
            own.restart()
            restarts += 1
            for _, job, spot in standing.values():
                under.release(job, spot)
            made += [(workspace, job) for workspace, job, _ in standing.values()]
            made += [under.create() for _ in range(2)]
        end_well(under, made, within=3 * UNRUNG_S)
        effects = under.effects([job for _, job in made])
        under.tell(
            f"postgres restarted {restarts} times: {len(made)} provisions and deletes ended, takeovers {dict(under.takeovers())}, "
            f"effects {effects.total()} for {len(effects)} expected"
        )
