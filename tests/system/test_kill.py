"""`kill -9` at every step boundary of both machines: it ends well, or nothing is left.

The boundaries are those that an undisturbed job was seen to pass, so a new step is killed without a word here. One daemon is
killed for many workspaces at once: whatever else was in flight in that process is hit, too, and must end well all the same.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest

from tests.system.house import House

LIVED: Mapping[str, int] = {"WORKSPACE_PROVISIONING": 1, "WORKSPACE_ONLINE": 1, "WORKSPACE_REMOVED": 1}
UNDONE: Mapping[str, int] = {"WORKSPACE_PROVISIONING": 1, "WORKSPACE_PROVISION_FAILED": 1, "WORKSPACE_REMOVED": 1}
#: Makes a provision go back after everything of it exists but before an agent could register.
REFUSED = ("forward.start.before", "refuse")


@pytest.fixture(scope="module", params=["memory", "docker"])
def house(request: pytest.FixtureRequest) -> House:
    """The daemon over this backend."""
    built: House = request.getfixturevalue(f"{request.param}_house")
    return built


@pytest.fixture(scope="module")
def boundaries(house: House) -> Mapping[str, Sequence[str]]:
    """Every boundary of a provision, of a delete and of an undo."""
    workspace, provision = house.create()
    assert house.ends(provision) == {provision: "succeeded"}
    delete = house.delete(workspace)
    failed, undone = house.create(REFUSED)
    assert house.ends(delete, undone) == {delete: "succeeded", undone: "failed"}
    house.ends(house.delete(failed))
    back = [spot for spot in house.spots(undone) if spot.startswith("back.")]
    return {"provision": house.spots(provision), "delete": house.spots(delete), "undo": back}


def killed_at_each(house: House, what: str, spots: Sequence[str], make: Callable[[str], tuple[str, str]], ends: str) -> list[str]:
    """Make a job for each spot that is killed there, and see all of them end so: their workspaces.

    A kill for another job can take a process away in the very moment in which this one should have died. That one is made again.
    """
    workspaces, jobs, left = [], [], list(spots)
    for _ in range(4):
        made = {spot: make(spot) for spot in left}
        states = house.ends(*[job for _, job in made.values()])
        assert {spot: states[job] for spot, (_, job) in made.items() if states[job] != ends} == {}
        workspaces += [workspace for workspace, _ in made.values()]
        jobs += [job for _, job in made.values()]
        left = [spot for spot, (_, job) in made.items() if not house.granted(job, spot, "kill")]
        if not left:
            break
    tell(house, what, len(spots), jobs)
    assert left == []
    assert too_often(house, jobs) == []
    return workspaces


def too_often(house: House, jobs: Sequence[str]) -> list[str]:
    """Effects that ran more often than once and once more for each crash of their job."""
    crashes = {job: house.takeovers(job).total() for job in jobs}
    return [
        f"{step} {count} times after {crashes[job]} crashes"
        for (job, _, step), count in house.effects(jobs).items()
        if count > 1 + crashes[job]
    ]


def tell(house: House, what: str, kills: int, jobs: Sequence[str]) -> None:
    effects = house.effects(jobs)
    takeovers: Counter[str] = sum((house.takeovers(job) for job in jobs), start=Counter())
    house.tell(f"{what}: {kills} kills, takeovers {dict(takeovers)}, effects {effects.total()} for {len(effects)} expected")


def faults_of(workspaces: Sequence[str], faults: Callable[[str], list[str]]) -> dict[str, list[str]]:
    return {workspace: found for workspace in workspaces if (found := faults(workspace))}


def test_killed_at_any_boundary_a_provision_ends_online_and_a_delete_leaves_nothing(
    house: House, boundaries: Mapping[str, Sequence[str]]
) -> None:
    online = killed_at_each(house, "provision", boundaries["provision"], lambda spot: house.create((spot, "kill")), "succeeded")

    assert faults_of(online, house.live_faults) == {}

    spare = list(online)

    def delete(spot: str) -> tuple[str, str]:
        workspace = spare.pop()
        return workspace, house.delete(workspace, (spot, "kill"))

    gone = killed_at_each(house, "delete", boundaries["delete"], delete, "succeeded")

    assert faults_of(gone, lambda workspace: house.gone_faults(workspace, LIVED)) == {}
    house.ends(*[house.delete(workspace) for workspace in spare])


def test_killed_at_any_boundary_an_undo_leaves_nothing_outside(house: House, boundaries: Mapping[str, Sequence[str]]) -> None:
    failed = killed_at_each(house, "undo", boundaries["undo"], lambda spot: house.create(REFUSED, (spot, "kill")), "failed")

    assert [workspace for workspace in failed if house.live_tokens(workspace) or house.things(workspace)] == []

    assert set(house.ends(*[house.delete(workspace) for workspace in failed]).values()) == {"succeeded"}
    assert faults_of(failed, lambda workspace: house.gone_faults(workspace, UNDONE)) == {}


def test_a_step_that_kills_its_process_again_and_again_blocks_alone(memory_house: House) -> None:
    house, spot, beside = memory_house, "forward.image.before", "forward.storage.before"
    # Neighbours in a long step: each process that dies takes some of them along, and they are in it again after each takeover.
    neighbours = [house.create((beside, "hold")) for _ in range(3)]
    workspace, job = house.create((spot, "kill"))
    kills = 0
    while house.rows("SELECT FROM worker.jobs WHERE id = :j AND state <> 'blocked'", j=job) and kills < 20:
        if house.granted(job, spot, "kill"):
            kills += 1
            house.grant_again(job, spot, "kill")
        for _, neighbour in neighbours:
            if (
                house.granted(neighbour, beside, "hold")
                and house.value("SELECT state FROM worker.jobs WHERE id = :j", j=neighbour) == "waiting"
            ):
                house.grant_again(neighbour, beside, "hold")
    house.tell(
        f"crash loop: {kills} kills, takeovers of the neighbours {dict(sum((house.takeovers(n) for _, n in neighbours), Counter()))}"
    )

    assert kills == 5
    assert house.value("SELECT error ->> 'code' FROM worker.jobs WHERE id = :j", j=job) == "crash_loop"
    for _, neighbour in neighbours:
        house.release(neighbour, beside)
    assert set(house.ends(*[neighbour for _, neighbour in neighbours]).values()) == {"succeeded"}
    house.withdraw(job, spot, "kill")
    house.retry(job)
    assert house.ends(job) == {job: "succeeded"}
    house.ends(*[house.delete(each) for each, _ in [*neighbours, (workspace, job)]])
