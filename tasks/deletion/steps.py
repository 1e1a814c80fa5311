"""One short function per effect of `workspace.delete`; each may run twice, and absence is success."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection

from worker.domain import Presence, ThingKind, WorkspaceId
from worker.engine.machine import Done, NotYet, Passage
from worker.errors import Misconfigured, Refused, Retryable
from worker.store import ledger, workspaces
from worker.world import World


def set_tombstone(passage: Passage, _world: World) -> Done:
    """Removed, its tokens revoked, its schedules off, its event written: one transaction, before anything is destroyed."""

    def rows(connection: Connection) -> Mapping[str, Any]:
        workspace = workspaces.get(connection, _id(passage), lock=True)
        if workspace is None:
            # The row went by another hand. What it had is in the ledger and carries our labels, so the job goes on.
            return {"row": "absent"}
        living = workspaces.children(connection, workspace.id)
        if living:
            names = ", ".join(f"{child.name} ({child.id})" for child in living[:5])
            raise Refused(
                f"delete workspace: it has {len(living)} children: {names}",
                hint="delete the children first, then retry",
                code="has_children",
            )
        first = workspaces.tombstone(connection, workspace.id)
        return {"row": "removed" if first else "was removed"}

    return Done(rows=rows)


def destroy_compute(passage: Passage, world: World) -> Done:
    """Whatever runs for the workspace is told to go, by the ledger and by a listing."""
    with world.read() as connection:
        recorded = ledger.present(connection, passage.subject)
    listed = world.compute.things(_id(passage))
    world.compute.destroy(_id(passage))
    return Done({"recorded": [thing.name for thing in recorded], "listed": [thing.name for thing in listed]})


def await_absence(passage: Passage, world: World) -> Done | NotYet:
    """A fresh look shows no container. `unknown` is not `gone`."""
    seen = world.compute.inspect(_id(passage)).presence
    if seen is Presence.UNKNOWN:
        raise Retryable("verify absence: the backend did not say", code="unknown")
    left = [thing.name for thing in world.compute.things(_id(passage)) if thing.kind is ThingKind.CONTAINER]
    if seen is not Presence.GONE or left:
        return NotYet(f"{', '.join(left) or 'the container'} to be gone", timedelta(seconds=1))
    return Done()


def destroy_volumes(passage: Passage, world: World) -> Done | NotYet:
    """All three volumes, a person's work among them, are gone."""
    holders = world.compute.destroy_storage(_id(passage))
    if holders:
        return NotYet(f"{', '.join(holders)} to let go of a volume", timedelta(seconds=2))
    return Done()


def prove_absence(passage: Passage, world: World) -> Done:
    """A last listing shows nothing, the ledger closes by it, and the cache forgets."""
    left = world.compute.things(_id(passage))
    if left:
        raise Retryable(f"prove absence: {', '.join(thing.name for thing in left)} is still there", code="still_there")
    world.cache.clear(_id(passage))

    def rows(connection: Connection) -> Mapping[str, Any]:
        here = world.compute
        if ledger.close(connection, left, backend=here.name, host=here.host, subject=passage.subject):
            raise Misconfigured(
                "prove absence: the ledger has things of this workspace on another host",
                hint="run a worker for that host and delete it again",
                code="wrong_host",
            )
        return {"left": 0}

    return Done(rows=rows)


def _id(passage: Passage) -> WorkspaceId:
    return WorkspaceId(passage.args["workspace_id"])
