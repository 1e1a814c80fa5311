"""Every job there is. Celery imports this module by the name in `config/celery.py`; nothing in `worker` does."""

from typing import Final

from tasks.deletion.machine import DELETE
from tasks.provision.machine import PROVISION
from tasks.sweeps import SCHEDULES
from worker.app import app
from worker.engine.kinds import Arg, Kind

_WORKSPACE: Final = {"workspace_id": Arg("uuid")}

KINDS: Final = (
    Kind(PROVISION, "workspace:", "workspace_id", _WORKSPACE, queue=None),
    # What may be skipped is what a dead host makes impossible; the debt stays, and the ledger says what it is about.
    Kind(
        DELETE, "workspace:", "workspace_id", _WORKSPACE, queue=None, supersedes=True, skippable=("compute", "absence", "volumes")
    ),
)

for _kind in KINDS:
    app.add_kind(_kind)
app.schedules = SCHEDULES
