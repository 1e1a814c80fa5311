from typing import Any

import pytest

from worker import reports
from worker.domain import WorkspaceStatus as Status
from worker.errors import Refused

ME = "0f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3"
OTHER = "1f3c9a52-7d1e-4b8a-9c60-5e2b7a41d9f3"


def beat(**fields: Any) -> reports.Heartbeat:
    return reports.heartbeat_of(fields)


@pytest.mark.parametrize("body", [{}, {"id": ME}, {"workspace_id": ME.upper()}, {"id": ME, "workspace_id": ME}])
def test_its_own_id_or_none_may_be_named(body: dict[str, Any]) -> None:
    assert not reports.names_other(body, [ME], ME)


@pytest.mark.parametrize("claim", [OTHER, "", "system:x", None, 7, [ME], {"id": ME}, ME + " ", ME[:-1]])
def test_any_other_id_in_a_body_or_header_is_another_ones(claim: Any) -> None:
    assert reports.names_other({"id": claim}, [], ME)
    assert reports.names_other({"id": ME, "workspace_id": claim}, [], ME)
    if isinstance(claim, str):
        assert reports.names_other({}, [ME, claim], ME)


def test_a_registration_has_a_url_and_a_card() -> None:
    assert reports.registration_of({"url": "u", "agent_card": {"name": "n"}}) == reports.Registration("u", {"name": "n"})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": 1, "agent_card": {}},
        {"url": "u"},
        {"url": "u", "agent_card": []},
        {"url": "u", "agent_card": {"a": "é" * 16400}},
    ],
)
def test_a_registration_without_them_or_with_a_huge_card_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="register: "):
        reports.registration_of(body)


def test_an_empty_heartbeat_reports_nothing() -> None:
    assert beat() == reports.Heartbeat(0.0, "", 0, "", 0, wedged=False, judges_itself=False, monthly_spend=None)
    assert beat(error_rate=None, active_tasks=None, sample_error=None, runtime_metadata=None, monthly_spend=None) == beat()


def test_long_texts_are_cut() -> None:
    assert beat(sample_error="x" * 5000, current_task="y" * 5000) == beat(sample_error="x" * 2000, current_task="y" * 2000)


KINDS: dict[str, list[Any]] = {
    "error_rate": [True, "0.5", -0.1, 1.01, 10**400, [0]],
    "active_tasks": [True, -1, 1.5, "1", 2**31],
    "uptime_seconds": [False, -1, 2**31],
    "monthly_spend": [-1, 2**63, 0.5],
    "sample_error": [1, {}, []],
    "current_task": [1, {}, []],
    "runtime_state": [1, {}, []],
    "runtime_metadata": [1, [], {"capabilities": 1}],
}
WRONG = [{field: value} for field, values in KINDS.items() for value in values]


@pytest.mark.parametrize("fields", WRONG)
def test_a_field_of_a_wrong_kind_or_out_of_range_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="heartbeat: "):
        beat(**fields)


@pytest.mark.parametrize("status", [Status.PROVISIONING, Status.OFFLINE])
def test_a_heartbeat_is_proof_of_being_online(status: Status) -> None:
    assert reports.next_status(status, beat(error_rate=1)) is Status.ONLINE


@pytest.mark.parametrize("status", [Status.REMOVED, Status.PAUSED, Status.HIBERNATED, Status.FAILED])
def test_a_heartbeat_moves_nobody_out_of_rest_or_failure(status: Status) -> None:
    for report in (beat(), beat(error_rate=1), beat(runtime_state="wedged")):
        assert reports.next_status(status, report) is status


NATIVE = {"capabilities": {"status_mgmt": True}}


@pytest.mark.parametrize(
    ("fields", "from_online", "from_degraded"),
    [
        ({"error_rate": 0.49}, Status.ONLINE, Status.DEGRADED),
        ({"error_rate": 0.5}, Status.DEGRADED, Status.DEGRADED),
        ({"error_rate": 0.1}, Status.ONLINE, Status.DEGRADED),
        ({"error_rate": 0.09}, Status.ONLINE, Status.ONLINE),
        ({"runtime_state": "wedged"}, Status.DEGRADED, Status.DEGRADED),
        ({"runtime_state": "fine"}, Status.ONLINE, Status.ONLINE),
        ({"error_rate": 0.9, "runtime_metadata": NATIVE}, Status.ONLINE, Status.ONLINE),
        ({"runtime_state": "wedged", "runtime_metadata": NATIVE}, Status.DEGRADED, Status.DEGRADED),
    ],
)
def test_trouble_begins_at_a_half_and_ends_below_a_tenth(
    fields: dict[str, Any], from_online: Status, from_degraded: Status
) -> None:
    assert reports.next_status(Status.ONLINE, beat(**fields)) is from_online
    assert reports.next_status(Status.DEGRADED, beat(**fields)) is from_degraded
