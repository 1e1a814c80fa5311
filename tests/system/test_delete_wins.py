"""A delete wins wherever the provision is: in any step, between any two, forward or back."""

from collections.abc import Mapping, Sequence

import pytest

from tests.system.house import House
from tests.waiting import until

#: Makes a provision go back after everything of it exists but before an agent could register.
REFUSED = ("forward.start.before", "refuse")
#: At most one of each, whatever the moment; and never that provisioning failed, as long as it was not undone.
EVENTS = {"WORKSPACE_PROVISIONING": 1, "WORKSPACE_ONLINE": 1, "WORKSPACE_REMOVED": 1}


@pytest.fixture(scope="module")
def boundaries(memory_house: House) -> tuple[Sequence[str], Sequence[str]]:
    """Every boundary of a provision on its way forward, and on its way back."""
    house = memory_house
    (forward, provision), (back, undone) = house.create(), house.create(REFUSED)
    house.ends(provision, undone)
    house.ends(house.delete(forward), house.delete(back))
    return house.spots(provision), [spot for spot in house.spots(undone) if spot.startswith("back.")]


def deleted_at_each(house: House, spots: Sequence[str], *wishes: tuple[str, str]) -> Mapping[str, tuple[str, str, str]]:
    """By spot: a workspace that was deleted while its provision was there, its provision and its delete, both at rest."""
    held = {spot: house.create((spot, "hold"), *wishes) for spot in spots}
    until(lambda: all(house.granted(job, spot, "hold") for spot, (_, job) in held.items()), within=30, what="all held")
    gone = {spot: (workspace, job, house.delete(workspace)) for spot, (workspace, job) in held.items()}
    for spot, (_, job, _) in gone.items():
        house.release(job, spot)
    house.ends(*[job for _, *pair in gone.values() for job in pair])
    return gone


def wrong(house: House, spot: str, workspace: str, events: Mapping[str, int]) -> list[str]:
    """What is left of a workspace that should be gone, and events that should not be there."""
    seen = house.events(workspace)
    faults = house.gone_faults(workspace, seen)
    if seen.get("WORKSPACE_REMOVED") != 1 or any(count > events.get(event, 0) for event, count in seen.items()):
        faults.append(f"events: {seen}")
    return [f"{spot}: {fault}" for fault in faults]


def test_a_delete_wins_in_every_step_of_a_provision(memory_house: House, boundaries: tuple[Sequence[str], Sequence[str]]) -> None:
    house, (spots, _) = memory_house, boundaries
    # After its last commit a job has ended, and there is nothing to win.
    gone = deleted_at_each(house, spots[:-1])
    states = {spot: (house.ends(made)[made], house.ends(delete)[delete]) for spot, (_, made, delete) in gone.items()}

    assert {spot: state for spot, state in states.items() if state != ("cancelled", "succeeded")} == {}
    assert [fault for spot, (workspace, *_) in gone.items() for fault in wrong(house, spot, workspace, EVENTS)] == []
    assert [
        spot for spot, (_, made, _) in gone.items() if any(line["direction"] == "back" for line in house.lines("enter", made))
    ] == []
    house.tell(f"delete wins: {len(gone)} provisions cancelled forward, none undone")


def test_a_delete_wins_in_every_step_of_an_undo(memory_house: House, boundaries: tuple[Sequence[str], Sequence[str]]) -> None:
    house, (_, spots) = memory_house, boundaries
    gone = deleted_at_each(house, spots[:-1], REFUSED)
    states = {spot: (house.ends(made)[made], house.ends(delete)[delete]) for spot, (_, made, delete) in gone.items()}

    assert {spot: state for spot, state in states.items() if state != ("cancelled", "succeeded")} == {}
    events = {**EVENTS, "WORKSPACE_PROVISION_FAILED": 1}
    assert [fault for spot, (workspace, *_) in gone.items() for fault in wrong(house, spot, workspace, events)] == []
    house.tell(f"delete wins: {len(gone)} provisions cancelled while they undid")
