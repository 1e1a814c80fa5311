"""The states of a job and the ways between them: the one list that the pictures and the model are compared with."""

from typing import Final

#: Nothing further happens by itself.
RESTS: Final = frozenset({"succeeded", "failed", "cancelled"})
LIVE: Final = frozenset({"queued", "running", "waiting", "blocked"})

#: (from, to) → what brings it about. None is before the job exists.
WAYS: Final[dict[tuple[str | None, str], str]] = {
    (None, "queued"): "enqueue",
    ("queued", "running"): "claim",
    ("queued", "cancelled"): "cancel, superseded",
    ("running", "waiting"): "not yet, back-off, given back, its process died",
    ("running", "blocked"): "a person or a release is needed",
    ("running", "succeeded"): "the last step is done",
    ("running", "failed"): "undone after an error",
    ("running", "cancelled"): "undone on request, superseded",
    ("waiting", "running"): "claim",
    ("waiting", "cancelled"): "superseded",
    ("blocked", "waiting"): "retry, skip, cancel, widened, a release came",
    ("blocked", "cancelled"): "superseded",
    ("failed", "queued"): "retry",
}


def mermaid() -> str:
    """The life of a job as a Mermaid state diagram."""
    return "\n".join(["stateDiagram-v2", *(f"    {begin or '[*]'} --> {end}: {why}" for (begin, end), why in WAYS.items())])
