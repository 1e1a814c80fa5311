"""How a workspace goes, as a table.

    tombstone ─▶ compute ─▶ absence ─▶ volumes ─▶ proof ─▶ succeeded

The point of no return is the first row: once the tombstone stands nothing brings the workspace back, so there is no
undo, and what cannot be done blocks until a person has helped.
"""

from tasks.deletion import steps
from worker.engine.machine import HOUR, MINUTE, NOTHING, QUICK, SECOND, STUBBORN, Machine, Step

# fmt: off
DELETE = Machine(
    kind="workspace.delete",  # stored with every job; renaming it is a migration
    only_forward=True,
    steps=(
        Step("tombstone", do=steps.set_tombstone,   undo=NOTHING, within=30 * SECOND, retry=QUICK),
        Step("compute",   do=steps.destroy_compute, undo=NOTHING, within=HOUR,        retry=STUBBORN),
        Step("absence",   do=steps.await_absence,   undo=NOTHING, within=HOUR,        retry=STUBBORN),
        Step("volumes",   do=steps.destroy_volumes, undo=NOTHING, within=HOUR,        retry=STUBBORN),
        Step("proof",     do=steps.prove_absence,   undo=NOTHING, within=10 * MINUTE, retry=STUBBORN),
    ),
)
# fmt: on
