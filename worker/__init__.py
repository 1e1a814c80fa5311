"""How it is done: the engine of jobs, the stores, the backends, the command line.

Where to look:

    engine/      a machine is a table of steps; decide (pure), drive (the only loop), lease, intake, doorbell, clock;
                 its docstring says in ten minutes why it cannot lose a job
    store/       the rows: claims and decisions, ledger, secrets, workspaces, events; migrations/sql is the engine in SQL
    crypto/      the bytes of a sealed secret, who seals, whose key
    images/      where a runtime's image comes from: decided in one place
    backends/    the three verbs on Docker and in memory; one contract suite
    receiver.py  the HTTP door that workspaces knock at; admin.py the one for operators: health, readiness, metrics
    metrics.py, metered.py, tracing.py   what is counted and traced, wrapped around the engine's ports
    app.py, broker.py, queues.py   Celery: one task for each kind, doorbells, who serves which queue
    runtime.py   the composition root of a worker process; assembly.py builds what its steps can reach
    supervisor.py, daemons.py, singleton.py   the processes of `run`
    cli/         what people type

Three guarantees, and every question of design is settled by them:

1. The row is the truth; the message is a doorbell. Redis may be wiped or absent: the job is unharmed.
2. A process may die between any two instructions. Every effect is safe to repeat, and its result is written only by
   the holder of the subject's current fence.
3. Nothing is left behind, nothing leaks. Every outside thing is in the ledger before it exists; a deletion is over when
   a fresh listing shows it absent; no secret is ever in a message, a log, an error or an argv.
"""
