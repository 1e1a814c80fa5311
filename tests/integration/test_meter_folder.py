import multiprocessing
import os
from pathlib import Path

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector

from worker import meter_folder, metrics


def test_a_daemons_folder_is_its_own_and_gone_when_it_is(tmp_path: Path) -> None:
    with meter_folder.reserved(tmp_path) as first, meter_folder.reserved(tmp_path) as second:
        assert first != second
        assert meter_folder.in_use(tmp_path) == 2
        assert os.environ[meter_folder.VARIABLE] == str(second)

    assert list(meter_folder.base_of(tmp_path).iterdir()) == []
    assert meter_folder.VARIABLE not in os.environ


def test_what_a_killed_daemon_left_is_removed_by_the_next_one_and_a_living_ones_is_not(tmp_path: Path) -> None:
    left, making = (meter_folder.base_of(tmp_path) / name for name in ("left", "making"))
    for folder in (left, making):
        folder.mkdir(parents=True)
    (left / "lock").touch()
    os.utime(left, (0, 0))
    with meter_folder.reserved(tmp_path) as living:
        os.utime(living, (0, 0))
        with meter_folder.reserved(tmp_path):
            assert {folder.name for folder in meter_folder.base_of(tmp_path).iterdir()} > {living.name, "making"}
            assert not left.exists()


def test_a_state_folder_that_cannot_be_used_costs_no_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics").touch()
    with meter_folder.reserved(tmp_path) as folder:
        assert folder.is_dir()
        assert tmp_path not in folder.parents
    assert not folder.exists()


def _counts(place: str, folder: str, times: int) -> None:
    meters = metrics.begin(place, Path(folder))
    for _ in range(times):
        meters.stale.inc()
    os._exit(9)  # as a process that is killed: nothing is written back


def _asked(folder: Path, name: str, **labels: str) -> float | None:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return registry.get_sample_value(f"molecule_worker_{name}", labels)


def test_counts_of_processes_add_up_and_outlive_them_and_their_successors_go_on(tmp_path: Path) -> None:
    with meter_folder.reserved(tmp_path) as folder:
        for place, times in (("jobs-1", 2), ("jobs-2", 3), ("jobs-1", 5)):
            child = multiprocessing.get_context("fork").Process(target=_counts, args=(place, str(folder), times))
            child.start()
            child.join(20)
            assert child.exitcode == 9

        assert _asked(folder, "stale_writes_rejected_total") == 10
        assert _asked(folder, "crashes_total", process="jobs-1") == 1
        assert _asked(folder, "crashes_total", process="jobs-2") == 0
        assert len(list(folder.glob("counter_*.db"))) == 2
    assert not values.ValueClass._multiprocess  # what the children did stayed with them
