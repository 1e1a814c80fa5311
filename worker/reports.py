"""What a workspace says of itself, checked and bounded: pure, so that no unchecked value reaches a row."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from worker.domain import WorkspaceStatus, parse_id
from worker.errors import Refused

_CARD_BYTES: Final = 32 * 1024
_TEXT_CHARACTERS: Final = 2000
_INT: Final = 2**31 - 1  #: Postgres integer
_BIGINT: Final = 2**63 - 1  #: Postgres bigint
#: Two thresholds, because with one a workspace on the edge would go to and fro.
_BAD_FROM: Final = 0.5
_GOOD_BELOW: Final = 0.1
WEDGED: Final = "wedged"


@dataclass(frozen=True, slots=True)
class Registration:
    """The body of a register call; the url is not judged yet."""

    url: str
    agent_card: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The body of a heartbeat."""

    error_rate: float  #: 0..1
    sample_error: str  #: output of the workspace: for its owner's eyes, cut to 2000 characters
    active_tasks: int
    current_task: str
    uptime_seconds: int
    wedged: bool  #: the agent answers and its work is dead
    judges_itself: bool  #: its adapter declared `status_mgmt`: the error rate decides nothing
    monthly_spend: int | None  #: cents; None: not reported


def names_other(body: Mapping[str, Any], headers: list[str], workspace_id: str) -> bool:
    """Whether any id in the body or in X-Workspace-ID is not this workspace's: the bearer alone says who calls."""
    claims = [body[key] for key in ("id", "workspace_id") if key in body] + headers
    return any(_canonical(claim) != workspace_id for claim in claims)


def registration_of(body: Mapping[str, Any]) -> Registration:
    """Raise Refused unless there is a url and an agent card of at most 32 KiB."""
    url, card = body.get("url"), body.get("agent_card")
    if not isinstance(url, str):
        raise _refused("register", "url is not a text", "send url and agent_card")
    if not isinstance(card, dict):
        raise _refused("register", "agent_card is not a JSON object", "send url and agent_card")
    if len(json.dumps(card, ensure_ascii=False).encode()) > _CARD_BYTES:
        raise _refused("register", f"agent_card is larger than {_CARD_BYTES} bytes", "shorten the card")
    return Registration(url, card)


def heartbeat_of(body: Mapping[str, Any]) -> Heartbeat:
    """Raise Refused for a field of a wrong kind or out of its range; an absent field or null means nothing to report."""
    metadata = _object(body, "runtime_metadata")
    spend = body.get("monthly_spend")
    return Heartbeat(
        error_rate=_rate(body),
        sample_error=_text(body, "sample_error"),
        active_tasks=_count(body, "active_tasks", _INT),
        current_task=_text(body, "current_task"),
        uptime_seconds=_count(body, "uptime_seconds", _INT),
        wedged=_text(body, "runtime_state") == WEDGED,
        judges_itself=_object(metadata, "capabilities").get("status_mgmt") is True,
        monthly_spend=None if spend is None else _count(body, "monthly_spend", _BIGINT),
    )


def next_status(status: WorkspaceStatus, beat: Heartbeat) -> WorkspaceStatus:
    """Where a heartbeat moves a workspace: one move at a time, and none out of rest or failure."""
    match status:
        case WorkspaceStatus.PROVISIONING | WorkspaceStatus.OFFLINE:
            return WorkspaceStatus.ONLINE
        case WorkspaceStatus.ONLINE if beat.wedged or (beat.error_rate >= _BAD_FROM and not beat.judges_itself):
            return WorkspaceStatus.DEGRADED
        case WorkspaceStatus.DEGRADED if not beat.wedged and (beat.error_rate < _GOOD_BELOW or beat.judges_itself):
            return WorkspaceStatus.ONLINE
        case _:
            return status


def _canonical(claim: object) -> str | None:
    try:
        return parse_id(claim) if isinstance(claim, str) else None
    except ValueError:
        return None


def _rate(body: Mapping[str, Any]) -> float:
    rate = body.get("error_rate")
    if rate is None:
        return 0.0
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise _refused("heartbeat", "error_rate is not a number from 0 to 1", "send the share of failed calls")
    return float(rate)


def _count(body: Mapping[str, Any], field: str, limit: int) -> int:
    count = body.get(field)
    if count is None:
        return 0
    if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= limit:
        raise _refused("heartbeat", f"{field} is not a whole number from 0 to {limit}", "send a JSON integer")
    return count


def _text(body: Mapping[str, Any], field: str) -> str:
    text = body.get(field)
    if text is not None and not isinstance(text, str):
        raise _refused("heartbeat", f"{field} is not a text", "send a JSON string")
    return (text or "")[:_TEXT_CHARACTERS]


def _object(body: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = body.get(field)
    if value is not None and not isinstance(value, dict):
        raise _refused("heartbeat", f"{field} is not a JSON object", "send an object")
    return value or {}


def _refused(verb: str, reason: str, hint: str) -> Refused:
    return Refused(f"{verb}: {reason}", hint=hint)
