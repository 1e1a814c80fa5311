"""One short function per effect of `workspace.provision`; each may run twice."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import structlog
from sqlalchemy import Connection

from tasks.provision import inputs
from worker.backends.tiers import refuse_tier
from worker.domain import JobId, Placement, Presence, Secret, Workspace, WorkspaceId, WorkspaceSpec, WorkspaceStatus
from worker.engine.machine import Done, NotYet, Passage
from worker.errors import Blame, Fatal, Foreign, Misconfigured, Refused, Retryable
from worker.ports import ImagePending
from worker.store import ledger, secrets, tokens, workspaces
from worker.world import World

log = structlog.get_logger()

#: Restarts after which a container that never registered counts as crashing.
_CRASHES = 5

_UP = (WorkspaceStatus.ONLINE, WorkspaceStatus.DEGRADED)
_STOPPED = (WorkspaceStatus.PAUSED, WorkspaceStatus.HIBERNATED)


class Crashing(Fatal):
    """The runtime keeps ending by itself."""

    code = "runtime_crashed"
    blame = Blame.TENANT


def admit(passage: Passage, world: World) -> Done:
    """The workspace may be provisioned; it says so, and everything that will be made is in the ledger."""

    def rows(connection: Connection) -> Mapping[str, Any]:
        workspace = _admitted(connection, passage, world)
        place = workspaces.placement(connection, workspace.id)
        _refuse_elsewhere(place, world)
        things = world.compute.plan(workspace.id, workspace.runtime, workspace.tier)
        ledger.intend(
            connection, things, backend=world.compute.name, host=world.compute.host, subject=passage.subject, job_id=passage.id
        )
        # An older container's heartbeat must not pass for the new one's: it is replaced anyway, so its token goes first.
        tokens.revoke_all(connection, workspace.id)
        workspaces.mark_provisioning(connection, workspace.id)
        return {"runtime": workspace.runtime, "tier": workspace.tier, "backend": world.compute.name, "host": world.compute.host}

    return Done(rows=rows)


def mark_failed(passage: Passage, _world: World) -> Done:
    """The row and the event say that it failed; a row that somebody else moved on is left alone."""
    error = passage.error or {}
    missing = error.get("missing") or ()

    def rows(connection: Connection) -> None:
        # From the admission on only this job's own agent could register, maybe in the moment in which it was given up.
        admitted = "admit" in passage.facts
        shown = str(error.get("message") or "provisioning failed")
        workspaces.mark_failed(connection, _id(passage), shown, missing, registered=admitted)
        # The last row that is undone: storage and container have listed before, and what they saw counts as existing.
        ledger.forget(connection, subject=passage.subject, job_id=passage.id)

    return Done(rows=rows)


def ensure_image(passage: Passage, world: World) -> Done | NotYet:
    """The runtime's image is on the host."""
    image = world.images.ensure(passage.facts["admit"]["runtime"], passage.id, passage.stopping)
    if isinstance(image, ImagePending):
        return NotYet(image.what, timedelta(seconds=image.after))
    return Done({"image": image.reference, "template_config": image.template_config, **image.origin})


def check_inputs(passage: Passage, world: World) -> Done:
    """Every secret opens and the config's demands are met, before any container exists."""
    given = _inputs(passage, world)
    config, environment = _configuration(passage, given, world), _environment(given, world)
    absent = inputs.missing(config.required, environment)
    if absent:
        raise _missing_env(absent)
    return Done({"config": config.origin, "variables": len(environment)})


def ensure_storage(passage: Passage, world: World) -> Done:
    """The volumes exist."""
    with world.read() as connection:
        workspace = _workspace(connection, passage)
        place = workspaces.placement(connection, workspace.id)
    # Without secrets and files, because a volume is given neither.
    world.compute.ensure_storage(_spec(passage, world, workspace, place))
    present = [thing.name for thing in world.compute.things(_id(passage))]
    return Done({"volumes": sorted(present)})


def destroy_storage(passage: Passage, world: World) -> Done:
    """The volumes that this job made are gone; older ones hold a person's work and stay."""
    holders = world.compute.destroy_storage(_id(passage), made_by=passage.id)
    if holders:
        raise Retryable(f"remove volumes: in use by {', '.join(holders)}", code="in_use")
    return _closing_ledger(passage, world)


def ensure_container(passage: Passage, world: World) -> Done:
    """A container with its token file and its config waits to be started; only its token is live from now on."""
    token = tokens.mint()
    given = _inputs(passage, world)
    spec = replace(
        _spec(passage, world, given.workspace, given.place),
        environment=_environment(given, world),
        files={".auth_token": token},
        defaults={"config.yaml": _configuration(passage, given, world).text},
    )
    handle = world.compute.ensure_created(spec)
    present = world.compute.things(_id(passage))

    def rows(connection: Connection) -> None:
        _refuse_removed(connection, passage)
        tokens.replace(connection, _id(passage), token)
        ledger.found(connection, present, subject=passage.subject)

    return Done({"container": handle}, rows=rows)


def destroy_container(passage: Passage, world: World) -> Done | NotYet:
    """No container, and no token that it could have shown."""
    try:
        world.compute.destroy(_id(passage))
    except Foreign:
        # The name belongs to somebody else, so ours is not there; an undo that insisted would never end.
        log.warning("container is foreign", workspace=_id(passage))
        return _without_token(passage, world)
    seen = world.compute.inspect(_id(passage)).presence
    if seen is not Presence.GONE:
        return NotYet(f"the container to be gone; it is {seen}", timedelta(seconds=1))
    return _without_token(passage, world)


def ensure_started(passage: Passage, world: World) -> Done:
    """It runs, and the row says where the host reaches it."""
    handle = world.compute.ensure_started(_id(passage))

    def rows(connection: Connection) -> None:
        _refuse_removed(connection, passage)
        if handle.url is not None:
            workspaces.save_url(connection, _id(passage), handle.url)

    return Done({"container": handle.id, "url": handle.url}, rows=rows)


def await_registration(passage: Passage, world: World) -> Done | NotYet:
    """The agent has registered by itself. Rung by the receiver; looked at every two seconds for what cannot ring."""
    with world.read() as connection:
        workspace = _workspace(connection, passage)
    if workspace.status in _UP:
        return Done({"status": str(workspace.status)})
    seen = world.compute.inspect(workspace.id)
    if seen.presence is Presence.GONE:
        raise Crashing(
            "await registration: the container is gone", hint="somebody removed it; retry the job", code="container_gone"
        )
    if seen.presence is Presence.STOPPED and (seen.restarts >= _CRASHES or seen.reason == "oom"):
        why = "it ran out of memory" if seen.reason == "oom" else f"it keeps exiting with code {seen.exit_code}"
        raise Crashing(f"await registration: {why}", hint=_once_more(passage))
    limit = timedelta(seconds=world.runtimes.deadline_of(workspace.runtime))
    if passage.elapsed >= limit:
        raise Crashing(
            f"await registration: the agent did not register within {limit.total_seconds():g} s",
            hint=_once_more(passage),
            code="registration_timeout",
        )
    return NotYet("the agent to register by itself", timedelta(seconds=2))


def _once_more(passage: Passage) -> str:
    """What it printed goes with its container and is kept nowhere, because an agent's output may hold secrets."""
    again = f"molecule-worker jobs retry {passage.id}"
    return f"what it printed went with its container: {again}, and while that waits molecule-worker workspaces logs {_id(passage)}"


def _id(passage: Passage) -> WorkspaceId:
    return WorkspaceId(passage.args["workspace_id"])


def _workspace(connection: Connection, passage: Passage, *, lock: bool = False) -> Workspace:
    workspace = workspaces.get(connection, _id(passage), lock=lock)
    if workspace is None:
        raise Refused(
            "provision workspace: there is no such workspace", hint="molecule-worker workspaces list", code="no_workspace"
        )
    if workspace.status is WorkspaceStatus.REMOVED:
        raise Refused("provision workspace: it was removed", hint="a removed workspace never comes back", code="removed")
    return workspace


def _admitted(connection: Connection, passage: Passage, world: World) -> Workspace:
    workspace = _workspace(connection, passage, lock=True)
    if workspace.runtime not in world.runtimes.runtimes:
        known = ", ".join(world.runtimes.runtimes)
        raise Refused("provision workspace: its runtime is not on the list", hint=f"one of {known}", code="unknown_runtime")
    if workspace.status in _UP:
        raise Refused("provision workspace: it is online already", hint="nothing has to be done", code="already_online")
    if workspace.status in _STOPPED:
        raise Refused(f"provision workspace: it is {workspace.status}", hint="resume it", code="stopped")
    refuse_tier("provision workspace", workspace.tier, saas=world.saas)
    return workspace


def _refuse_elsewhere(place: Placement | None, world: World) -> None:
    here = world.compute
    if place is not None and (place.backend, place.host) != (here.name, here.host):
        raise Misconfigured(
            f"provision workspace: it is placed on {place.backend}.{place.host}, and this worker serves {here.name}.{here.host}",
            hint="run a worker for that host",
            code="wrong_host",
        )


def _refuse_removed(connection: Connection, passage: Passage) -> None:
    """The last look before the commit, because a tombstone may have been set while the container was made."""
    if workspaces.is_removed(connection, _id(passage)):
        raise Refused("provision workspace: it was removed meanwhile", code="removed")


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What the rows say that a workspace is given. In memory only: it holds the workspace's secrets."""

    workspace: Workspace
    place: Placement | None
    model: str | None
    secrets: Mapping[str, Secret]


def _inputs(passage: Passage, world: World) -> _Inputs:
    with world.read() as connection:
        workspace = _workspace(connection, passage)
        return _Inputs(
            workspace,
            workspaces.placement(connection, workspace.id),
            workspaces.model(connection, workspace.id),
            secrets.open_all(connection, world.key, workspace.id),
        )


def _configuration(passage: Passage, given: _Inputs, world: World) -> inputs.Configuration:
    template = passage.facts["image"].get("template_config")
    return inputs.configuration(given.workspace, given.model, template, world.runtimes)


def _environment(given: _Inputs, world: World) -> dict[str, Secret]:
    return inputs.environment(
        given.workspace, given.secrets, model=given.model, platform_url=world.platform_url(), passthrough=world.passthrough
    )


def _spec(passage: Passage, world: World, workspace: Workspace, place: Placement | None) -> WorkspaceSpec:
    """Good for storage; a container needs environment and files as well."""
    # Again, because another program may have raised the row's tier since the admission.
    refuse_tier("provision workspace", workspace.tier, saas=world.saas)
    return WorkspaceSpec(
        workspace_id=workspace.id,
        job_id=JobId(passage.id),
        org=place.org if place is not None else "",
        runtime=workspace.runtime,
        tier=workspace.tier,
        image=passage.facts["image"]["image"],
        environment={},
        files={},
        defaults={},
        workspace_dir=workspace.workspace_dir,
        workspace_access=workspace.workspace_access,
    )


def _without_token(passage: Passage, world: World) -> Done:
    """No token is live any more, and the ledger says what a listing says."""
    present = world.compute.things(_id(passage))

    def rows(connection: Connection) -> None:
        tokens.revoke_all(connection, _id(passage))
        ledger.close(connection, present, backend=world.compute.name, host=world.compute.host, subject=passage.subject)

    return Done(rows=rows)


def _closing_ledger(passage: Passage, world: World) -> Done:
    present = world.compute.things(_id(passage))

    def rows(connection: Connection) -> None:
        ledger.close(connection, present, backend=world.compute.name, host=world.compute.host, subject=passage.subject)

    return Done(rows=rows)


def _missing_env(absent: list[str]) -> Refused:
    names = ", ".join(absent)
    return Refused(
        f"missing required env: {names}",
        hint="add them under Config → Env Vars or as Global secrets, then retry",
        code="missing_env",
        detail={"missing": absent},
    )
