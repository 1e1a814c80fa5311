"""A workspace and an installation, as the unit tests of shapes want them."""

from worker.backends.docker_shape import Shape
from worker.domain import JobId, Secret, WorkspaceId, WorkspaceSpec

ID = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
SPEC = WorkspaceSpec(
    workspace_id=WorkspaceId(ID),
    job_id=JobId("11111111-2222-4333-8444-555555555555"),
    org="acme",
    runtime="langgraph",
    tier=2,
    image="image:tag",
    environment={"A": Secret("1")},
    files={},
    defaults={},
)
SHAPE = Shape(installation="here")
