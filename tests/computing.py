"""What provisioning does in two steps, in one: for tests that only want a workspace to be there."""

from worker.domain import Handle, WorkspaceSpec
from worker.ports import Compute


def bring_up(compute: Compute, spec: WorkspaceSpec) -> Handle:
    compute.ensure_created(spec)
    return compute.ensure_started(spec.workspace_id)
