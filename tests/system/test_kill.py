"""`kill -9` at every step boundary of both machines: it ends well, or nothing is left.

The boundaries are those that an undisturbed job was seen to pass, so a new step is killed without a word here. One daemon is
killed for many workspaces at once: whatever else was in flight in that process is hit, too, and must end well all the same.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from tests.system.house import House

LIVED: Mapping[str, int] = {"WORKSPACE_PROVISIONING": 1, "WORKSPACE_ONLINE": 1, "WORKSPACE_REMOVED": 1}
UNDONE: Mapping[str, int] = {"WORKSPACE_PROVISIONING": 1, "WORKSPACE_PROVISION_FAILED": 1, "WORKSPACE_REMOVED": 1}
#: Makes a provision go back after everything of it exists but before an agent could register.
REFUSED = ("forward.start.before", "refuse")


@pytest.fixture(scope="module", params=["memory"])
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


def extra_effects(house: House, jobs: Sequence[str]) -> list[str]:
    """Effects that ran more often than once and once more for each crash of their job: none."""
    crashes = {job: sum(house.takeovers(job).values()) for job in jobs}
    return [f"{step} {count} times after {crashes[job]} crashes" for (job, _, step), count in house.effects(jobs).items() if count > 1 + crashes[job]]


def tell(house: House, what: str, spots: Sequence[str], jobs: Sequence[str]) -> None:
    effects = house.effects(jobs)
    takeovers: Counter[str] = sum((house.takeovers(job) for job in jobs), start=Counter())
    print(  # noqa: T201  because a person wants to know what was done
        f"\n{what}: {len(spots)} kills, takeovers {dict(takeovers)}, effects {sum(effects.values())} for {len(effects)} expected"
    )


def test_a_provision_that_is_killed_at_any_boundary_ends_online_and_its_delete_leaves_nothing(
    house: House, boundaries: Mapping[str, Sequence[str]]
) -> None:
    spots = boundaries["provision"]
    made = {spot: house.create((spot, "kill")) for spot in spots}
    jobs = [job for _, job in made.values()]
    states = house.ends(*jobs)

    tell(house, "provision", spots, jobs)
    assert {spot: states[job] for spot, (_, job) in made.items() if states[job] != "succeeded"} == {}
    assert [spot for spot, (_, job) in made.items() if not house.granted(job, spot, "kill")] == []
    assert {spot: faults for spot, (workspace, _) in made.items() if (faults := house.live_faults(workspace))} == {}
    assert extra_effects(house, jobs) == []

    ends = boundaries["delete"]
    deletes = {}
    for number, (workspace, _) in enumerate(made.values()):
        spot = ends[number % len(ends)]
        deletes[workspace] = (spot, house.delete(workspace, (spot, "kill")))
    jobs = [job for _, job in deletes.values()]
    states = house.ends(*jobs)

    tell(house, "delete", list(deletes), jobs)
    assert len(made) >= len(ends)
    assert {spot: states[job] for spot, job in deletes.values() if states[job] != "succeeded"} == {}
    assert [spot for spot, job in deletes.values() if not house.granted(job, spot, "kill")] == []
    assert {spot: faults for workspace, (spot, _) in deletes.items() if (faults := house.gone_faults(workspace, LIVED))} == {}
    assert extra_effects(house, jobs) == []


def test_an_undo_that_is_killed_at_any_boundary_leaves_nothing_outside(house: House, boundaries: Mapping[str, Sequence[str]]) -> None:
    spots = boundaries["undo"]
    made = {spot: house.create(REFUSED, (spot, "kill")) for spot in spots}
    jobs = [job for _, job in made.values()]
    states = house.ends(*jobs)

    tell(house, "undo", spots, jobs)
    assert {spot: states[job] for spot, (_, job) in made.items() if states[job] != "failed"} == {}
    assert [spot for spot, (_, job) in made.items() if not house.granted(job, spot, "kill")] == []
    assert extra_effects(house, jobs) == []
    deletes = [house.delete(workspace) for workspace, _ in made.values()]
    assert set(house.ends(*deletes).values()) == {"succeeded"}
    assert {spot: faults for spot, (workspace, _) in made.items() if (faults := house.gone_faults(workspace, UNDONE))} == {}
