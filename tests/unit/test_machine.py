"""A table that contradicts itself cannot be imported, and one that can draws what the policy does."""

from datetime import timedelta

import pytest

from tasks.deletion.machine import DELETE
from tasks.provision.machine import PROVISION
from worker.engine.kinds import Arg, Kind
from worker.engine.machine import HOUR, NOTHING, QUICK, BadMachine, Done, Machine, Passage, Retry, Step


def undo(_passage: Passage, _world: object) -> Done:
    """An undo that is not NOTHING."""
    return Done()


def row(name: str, *, has_undo: bool = False, within: timedelta = HOUR, retry: Retry = QUICK) -> Step:
    return Step(name, do=NOTHING, undo=undo if has_undo else NOTHING, within=within, retry=retry)


def machine(*steps: Step, only_forward: bool = False) -> Machine:
    return Machine("toy.make", steps, only_forward)


def test_a_machine_without_rows_is_refused() -> None:
    with pytest.raises(BadMachine, match="no steps"):
        machine()


def test_a_step_that_is_entered_twice_is_refused() -> None:
    with pytest.raises(BadMachine, match="image is entered twice"):
        machine(row("image"), row("start"), row("image"))


def test_an_undo_that_would_never_run_is_refused() -> None:
    with pytest.raises(BadMachine, match="the undo of start would never run"):
        machine(row("image"), row("start", has_undo=True), only_forward=True)


@pytest.mark.parametrize("name", ["", "a", "Image", "1st", "two words", "image\n", "image-1", "x" * 43])
def test_a_name_that_is_not_a_plain_word_is_refused(name: str) -> None:
    with pytest.raises(BadMachine, match="is not a step name"):
        machine(row(name))


@pytest.mark.parametrize(
    "never",
    [
        row("image", within=timedelta(0)),
        row("image", within=timedelta(seconds=-1)),
        row("image", retry=Retry(0, timedelta(1), timedelta(1))),
    ],
)
def test_a_step_that_could_never_run_is_refused(never: Step) -> None:
    with pytest.raises(BadMachine, match="image could never run"):
        machine(never)


def test_a_machine_that_can_go_back_draws_every_way_into_its_undo() -> None:
    drawn = machine(row("admit"), row("image", has_undo=True), row("start"), row("storage", has_undo=True), row("agent"))

    assert drawn.mermaid().splitlines() == [
        "stateDiagram-v2",
        "    direction LR",
        "    [*] --> admit",
        "    admit --> image",
        "    image --> start",
        "    start --> storage",
        "    storage --> agent",
        "    agent --> succeeded",
        "    admit --> failed",
        "    image --> undo_image",
        "    start --> undo_image",
        "    storage --> undo_storage",
        "    agent --> undo_storage",
        "    undo_storage --> undo_image",
        "    undo_image --> failed",
    ]


def test_a_machine_that_only_goes_forward_draws_who_must_help() -> None:
    assert machine(row("tombstone"), row("proof"), only_forward=True).mermaid().splitlines()[2:] == [
        "    [*] --> tombstone",
        "    tombstone --> proof",
        "    proof --> succeeded",
        "    tombstone --> blocked: a person must help",
        "    proof --> blocked: a person must help",
    ]


def test_a_subject_that_is_no_arg_of_its_kind_is_refused() -> None:
    with pytest.raises(BadMachine, match="workspace_id is not among its args"):
        Kind(machine(row("image")), "workspace:", "workspace_id", {"id": Arg("uuid")}, None)


def test_only_a_boolean_can_be_widened() -> None:
    with pytest.raises(BadMachine, match="only a boolean can be widened"):
        Kind(machine(row("image")), "toy:", "id", {"id": Arg("uuid")}, None, widens=("id",))


@pytest.mark.parametrize("real", [PROVISION, DELETE], ids=lambda real: real.kind)
def test_a_real_machine_draws_each_of_its_steps_on_the_way_to_success(real: Machine) -> None:
    way = [line.split(" --> ")[0].strip() for line in real.mermaid().splitlines()[3:]]

    assert way[: len(real.steps)] == list(real.names)
