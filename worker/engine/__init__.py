"""The engine of jobs: why it cannot lose one, in ten minutes.

What it is for
--------------
A job changes the world in steps: it starts containers, wraps keys, deletes tenants. Processes die, databases restart, networks
part, and a person presses cancel. The engine makes sure that every job still ends, in one of few ways, and that nothing which
it did is forgotten. It is three sentences:

1. **The row is the truth.** A job is a row of `worker.jobs`, stored in its caller's own transaction. Redis carries doorbells; a
   doorbell that is lost costs a second, because every process also looks for itself.
2. **A process may die between any two instructions.** What it had committed is what happened. Whoever takes the job over starts at
   the first step that is not written down as done, so a step's effect may happen twice, and each is written to be found again.
3. **Only the holder of the subject's fence writes.** Every claim of a subject (a workspace, a tenant) adds one to its fence, and
   every later write shows the fence that it was claimed with. A process that froze and comes back shows an old one, and is refused.

The life of a job
-----------------
    stateDiagram-v2
        [*] --> queued: enqueue
        queued --> running: claim
        queued --> cancelled: cancel, superseded
        running --> waiting: not yet, back-off, given back, its process died
        running --> blocked: a person or a release is needed
        running --> succeeded: the last step is done
        running --> failed: undone after an error
        running --> cancelled: undone on request, superseded
        waiting --> running: claim
        waiting --> cancelled: superseded
        blocked --> waiting: retry, skip, cancel, widened, a release came
        blocked --> cancelled: superseded
        failed --> queued: retry

A test compares this picture with what the model of the store permits, and the model with the database.

One turn of the loop
--------------------
    claim    takes due jobs, in fair turns between organisations, and their subjects; the fence grows     functions/50_claim.sql
    act      runs one effect, outside any transaction, while the lease is good                           drive.py
    decide   weighs its result: pure, no clock, no randomness                                            decide.py
    apply    one statement: is my fence still the subject's? then the step's facts, the job's new place   functions/60_apply.sql

*Why no job is lost.* A job that is not at rest is in exactly one of these places, and each has somebody who looks there again
and again, whatever was announced or missed:

    ready       in the index `jobs_ready`: every process claims from it each second or two, and at once when a doorbell rings
    later       in `jobs_later`, until its time: each claim first promotes what has become due (functions/45_call.sql)
    parked      behind another job on its subject: each claim unparks the first behind every free subject that is awaited
    paused      until the pause is lifted, which frees exactly those
    running     on a process that beats: each process takes back the jobs of those whose session lock is free (killed: seen in
                milliseconds) or whose lease has ended (frozen, cut off: seconds), and a process that finds a job running here which
                nobody here drives leaves, so that this too is taken back
    blocked     visible, counted, with a sentence that says who must do what; a release that knows the job's steps frees it
    a parent    waits for its children: each claim tells the parents of those that have ended

*Why nothing is done twice that must not be.* Effects on our own tables commit together with the checkpoint
(`Done(rows=...)`): exactly once. Effects outside are at least once and carry a key that stays the same (`passage.key`); a
step looks for what an earlier attempt made before it makes anything. A reply that was lost is not guessed at: the same
decision is sent again and is either written or refused, and a process that cannot know leaves.

*Why a step is not blamed for a network.* A process that dies unasked (killed, out of memory) or freezes counts as a crash of the
step at which each of its jobs stands: after five without a decision between them the job blocks. One that leaves because it
cannot know what it holds says so in its row before it exits, and one whose server was restarted or failed over is recognised by
its row: neither counts, and their jobs are due again at once.

*Why nobody waits for ever.* Locks are taken in one order (rows of the platform, jobs by id, their own subjects by key) and
everything else is only taken where nobody holds it. A claim never waits for a caller's lock. Clocks of machines are not
compared: the database's clock says what is due, and a process measures only differences.

*Why an old process does no harm to a new job.* Each list of steps that a kind ever had is a numbered definition, a process
says which of them it is able to do, and is offered no other. A step's name is stored, hence an interface.

Where to read on
----------------
`machine.py` the table and the results of a step; `decide.py` the policy; `drive.py` the loop; `walk.py` where a job stands;
`lease.py` the right to work; `intake.py` which jobs, when; `doorbell.py` the bells; `clock.py` what comes round; `states.py` the
picture above. The statements are in `worker/store/migrations/sql/functions/`, one file for each noun, and `worker.violations` is
the list of what must never be true.

What it does not promise
------------------------
- **Dynamic control flow.** A machine is a fixed table. What varies goes into one step's code, or into children.
- **Exactly once outside.** A peer that can neither be asked nor given a key may see a call twice after a crash.
- **More than one region.** One database is the truth; two that accept writes are two truths.
- **The tail of an asynchronous replica.** A commit that the failed primary had answered and the replica had not received is gone,
  also its fence: fail over to a synchronous one, or expect to reconcile with the ledger.
- **A hard deadline.** `within` ends a step at its next look; it interrupts no call. Each call has a deadline of its own.
- **An order between subjects.** Jobs of one subject go one after the other, by priority, then by age. Across subjects there are
  turns.
- **Cancel at the last moment.** A job whose last step was under way when it was cancelled may still succeed, and says so.
"""
