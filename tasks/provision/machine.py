"""How a workspace comes to life, as a table.

    admit ─▶ image ─▶ inputs ─▶ storage ─▶ container ─▶ start ─▶ registration ─▶ succeeded
      ╰────────┴────────┴─────────┴───────────┴───────────┴───────────┴───────▶ undone, failed

The worker never marks anything online: the last step waits until the agent has registered by itself.
"""

from datetime import timedelta

from tasks.provision import steps
from worker.engine.machine import HOUR, MINUTE, NOTHING, PATIENT, QUICK, SECOND, Machine, Step

# Builds may queue behind each other on one host, and a build has a ceiling of its own.
_IMAGE = 2 * HOUR
# Above every runtime's own deadline (config/runtimes.toml), which the step itself watches.
_REGISTRATION = timedelta(minutes=45)

# fmt: off
PROVISION = Machine(
    kind="workspace.provision",  # stored with every job; renaming it is a migration
    only_forward=False,
    steps=(
        Step("admit",        do=steps.admit,              undo=steps.mark_failed,       within=30 * SECOND,  retry=QUICK),
        Step("image",        do=steps.ensure_image,       undo=NOTHING,                 within=_IMAGE,       retry=PATIENT),
        Step("inputs",       do=steps.check_inputs,       undo=NOTHING,                 within=30 * SECOND,  retry=QUICK),
        Step("storage",      do=steps.ensure_storage,     undo=steps.destroy_storage,   within=2 * MINUTE,   retry=PATIENT),
        Step("container",    do=steps.ensure_container,   undo=steps.destroy_container, within=3 * MINUTE,   retry=PATIENT),
        Step("start",        do=steps.ensure_started,     undo=NOTHING,                 within=3 * MINUTE,   retry=PATIENT),
        Step("registration", do=steps.await_registration, undo=NOTHING,                 within=_REGISTRATION, retry=PATIENT),
    ),
)
# fmt: on
