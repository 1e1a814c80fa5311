"""The event log of the platform: the one place that writes to `structure_events`, always in the projection's transaction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert

from worker.store import tables


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a workspace, as it was recorded and as it is broadcast after the commit."""

    event_type: str  #: WORKSPACE_ONLINE and its kin: platform names, stored, hence an interface
    workspace_id: str
    payload: Mapping[str, Any]  #: JSON; never a secret, never output of the workspace, because the log is for ever


def record(connection: Connection, event_type: str, workspace_id: str, payload: Mapping[str, Any]) -> Event:
    """Append one event to the caller's transaction and answer it, for `Cache.publish` after the commit."""
    connection.execute(
        insert(tables.structure_events).values(event_type=event_type, workspace_id=workspace_id, payload=dict(payload))
    )
    return Event(event_type, workspace_id, payload)
