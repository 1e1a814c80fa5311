-- What the engine of revision 0001 lacked. Functions are written anew afterwards (functions/).

-- All locks first, in the order in which beats and claims take them, or none: then nobody who waits behind us holds what we want next.
-- A caller's enqueue reads the kinds before the jobs and a claim after them, so one of the two orders is never ours; hence all waits
-- together stay below the 1 s after which the server looks for deadlocks, and it is always we who give up (worker/store/in_use.py).
SET LOCAL lock_timeout = '60ms';
DROP VIEW IF EXISTS worker.job_status, worker.violations; -- written anew with the functions; who reads them comes to the tables by them
LOCK TABLE worker.processes IN ACCESS EXCLUSIVE MODE;
SET LOCAL lock_timeout = '500ms';
LOCK TABLE worker.jobs IN ACCESS EXCLUSIVE MODE;
SET LOCAL lock_timeout = '60ms';
LOCK TABLE worker.subjects, worker.kinds, worker.steps IN ACCESS EXCLUSIVE MODE;

CREATE TABLE worker.definitions (
    id    int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    kind  text NOT NULL,
    steps text[] NOT NULL,
    first boolean NOT NULL DEFAULT false,
    UNIQUE (kind, steps)
);
COMMENT ON COLUMN worker.definitions.first IS 'Of a release whose processes do not say yet what they are able to do.';
COMMENT ON TABLE worker.definitions IS 'Each list of steps that a kind ever had: a process says by number which it is able to do.';

ALTER TABLE worker.kinds
    ADD COLUMN skippable text[] NOT NULL DEFAULT '{}',
    ADD COLUMN definition int;
COMMENT ON COLUMN worker.kinds.skippable IS 'Steps that an operator may skip on the way forward; an undo may always be skipped.';

ALTER TABLE worker.processes
    ADD COLUMN host text NOT NULL DEFAULT '',
    ADD COLUMN able int[],
    ADD COLUMN server_started_at timestamptz,
    ADD COLUMN in_doubt boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN worker.processes.in_doubt IS 'It left because it could not know what it held: no step is to blame for that.';
COMMENT ON COLUMN worker.processes.server_started_at IS 'When the server began on which it entered: on another, its session lock is gone and says nothing.';
-- A default and nothing that `enter` does, because workers of the first release store their row themselves. Of those that are here, one
-- whose session lock is held as we look entered on this server; of the others only the lease counts.
ALTER TABLE worker.processes ALTER COLUMN server_started_at SET DEFAULT pg_postmaster_start_time();
UPDATE worker.processes p SET server_started_at = pg_postmaster_start_time() WHERE EXISTS (
    SELECT FROM pg_locks l JOIN pg_database b ON b.oid = l.database AND b.datname = current_database()
    WHERE l.locktype = 'advisory' AND l.classid = x'6D7701'::int::oid AND l.objid = p.id::oid AND l.granted);
COMMENT ON COLUMN worker.processes.able IS 'Definitions whose every step this release knows. NULL: it never said, and is offered the first ones.';

ALTER TABLE worker.jobs
    ADD COLUMN due boolean NOT NULL DEFAULT true,
    ADD COLUMN paused boolean NOT NULL DEFAULT false,
    ADD COLUMN supersedes boolean NOT NULL DEFAULT false,
    ADD COLUMN definition int,
    ADD COLUMN units_done bigint,
    ADD COLUMN units_total bigint;
COMMENT ON COLUMN worker.jobs.due IS 'Its run_at has come: claims look at these only, and first promote those whose time it is.';
COMMENT ON COLUMN worker.jobs.paused IS 'Found by a claim while a pause held: out of the ready index until that pause is over.';
COMMENT ON COLUMN worker.jobs.units_done IS 'Of units_total: what the current step says of its own progress.';

INSERT INTO worker.definitions (kind, steps, first) SELECT kind, steps, true FROM worker.kinds UNION SELECT kind, steps, true FROM worker.jobs;
UPDATE worker.kinds k SET definition = d.id FROM worker.definitions d WHERE d.kind = k.kind AND d.steps = k.steps;
-- Jobs at rest stay as they are, because they are nearly all of them, and a row that is written anew is held up for everybody: one
-- that is retried gets what it lacks then (worker.define).
UPDATE worker.jobs j SET definition = d.id, supersedes = coalesce((SELECT k.supersedes FROM worker.kinds k WHERE k.kind = j.kind), false),
       due = j.state NOT IN ('queued', 'waiting') OR j.run_at <= clock_timestamp()
FROM worker.definitions d
WHERE d.kind = j.kind AND d.steps = j.steps AND j.state IN ('queued', 'running', 'waiting', 'blocked');

ALTER TABLE worker.subjects ADD COLUMN awaited boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN worker.subjects.awaited IS 'Jobs may be parked behind it: whoever claims next looks, once it is free.';
UPDATE worker.subjects s SET awaited = true WHERE s.key IN (SELECT j.subject FROM worker.jobs j WHERE j.state = 'queued' AND j.parked);
CREATE INDEX subjects_freed ON worker.subjects (key) WHERE job_id IS NULL AND awaited;

-- Not looked through, because every row obeyed the narrower one.
ALTER TABLE worker.steps DROP CONSTRAINT steps_status_check;
ALTER TABLE worker.steps ADD CONSTRAINT steps_status_check CHECK (status IN ('waiting', 'done', 'failed', 'skipped')) NOT VALID;

-- By queue and organisation, so that a claim takes turns between organisations with one probe each, and neither another
-- host's jobs nor those of tomorrow are ever looked at.
DROP INDEX worker.jobs_ready;
CREATE INDEX jobs_ready ON worker.jobs (queue, org, priority, seq) WHERE state IN ('queued', 'waiting') AND due AND NOT parked AND NOT paused;
CREATE INDEX jobs_later ON worker.jobs (run_at) WHERE state IN ('queued', 'waiting') AND NOT due;
CREATE INDEX jobs_bell ON worker.jobs (rung_at) WHERE state IN ('queued', 'waiting') AND due AND NOT parked AND NOT paused;
CREATE INDEX jobs_paused ON worker.jobs (kind, org) WHERE paused;
CREATE INDEX jobs_unknown ON worker.jobs (definition) WHERE state = 'blocked' AND error ->> 'code' = 'unknown_step';
CREATE INDEX jobs_undefined ON worker.jobs (id) WHERE definition IS NULL AND state IN ('queued', 'running', 'waiting', 'blocked');
CREATE INDEX jobs_rested ON worker.jobs (kind, finished_at) WHERE state IN ('succeeded', 'failed', 'cancelled');
CREATE INDEX jobs_blocked ON worker.jobs (kind, subject) WHERE state = 'blocked';
-- What people list, newest first. Without what runs, because a claim should not pay for it, and jobs_process finds these few.
CREATE INDEX jobs_newest ON worker.jobs (kind, state, seq) WHERE state <> 'running';

CREATE TABLE worker.aliases (
    kind            text NOT NULL,
    idempotency_key text NOT NULL,
    job_id          uuid NOT NULL,
    args            jsonb NOT NULL,
    PRIMARY KEY (kind, idempotency_key)
);
CREATE INDEX aliases_job ON worker.aliases (job_id);
COMMENT ON TABLE worker.aliases IS 'Idempotency keys and the job that each means for as long as that is kept; those of the first release stand in its jobs alone.';

CREATE TABLE worker.pauses (
    scope        text NOT NULL CHECK (scope IN ('kind', 'org', 'host', 'all')),
    what         text NOT NULL,
    reason       text,
    requested_by text,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (scope, what)
);
COMMENT ON TABLE worker.pauses IS 'What is not claimed: a kind, an organisation, everything; and nodes (scope host: where worker processes run) that are drained.';

CREATE TABLE worker.children (
    parent   uuid NOT NULL,
    position smallint NOT NULL,
    number   int NOT NULL,
    kind     text NOT NULL,
    args     jsonb NOT NULL,
    most     smallint NOT NULL CHECK (most > 0),
    job_id   uuid,
    made     boolean NOT NULL DEFAULT false,
    state    text,
    told     boolean NOT NULL DEFAULT false,
    PRIMARY KEY (parent, position, number)
);
CREATE INDEX children_open ON worker.children (parent, position, number) WHERE state IS NULL;
CREATE INDEX children_job ON worker.children (job_id);
CREATE INDEX children_untold ON worker.children (parent) WHERE state IS NOT NULL AND NOT told;
COMMENT ON TABLE worker.children IS 'What a step spread over other jobs: no job yet (job_id NULL), live (state NULL), or at rest. One that was let go is as one that was never started.';
COMMENT ON COLUMN worker.children.most IS 'How many of its siblings may live at once.';
COMMENT ON COLUMN worker.children.made IS 'Its job was made for this parent. A job that was live already is joined: whoever asked for it still wants it.';
COMMENT ON COLUMN worker.children.told IS 'The parent has been woken since this child came to rest.';

CREATE TABLE worker.debts (
    id           bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    job_id       uuid NOT NULL,
    subject      text NOT NULL,
    direction    text NOT NULL,
    step         text NOT NULL,
    reason       text NOT NULL,
    requested_by text,
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_at   timestamptz,
    settled_by   text
);
CREATE INDEX debts_subject ON worker.debts (subject);
CREATE INDEX debts_job ON worker.debts (job_id);
CREATE INDEX debts_open ON worker.debts (id) WHERE settled_at IS NULL;
COMMENT ON TABLE worker.debts IS 'Steps that an operator skipped: what was not done, why, and who said so.';
COMMENT ON COLUMN worker.debts.settled_at IS 'When a retry took the skip back: the step is acted after all.';

CREATE TABLE worker.slots (
    schedule    text NOT NULL,
    slot        timestamptz NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    job_id      uuid,
    outcome     jsonb,
    PRIMARY KEY (schedule, slot)
);
COMMENT ON TABLE worker.slots IS 'Each time that a schedule came round, once, whoever was first.';

CREATE TABLE worker.durations (
    kind        text NOT NULL,
    step        text NOT NULL,
    variant     text NOT NULL CHECK (variant IN ('', 'hit', 'miss')),
    n           int NOT NULL,
    p50_ms      float8 NOT NULL,
    p95_ms      float8 NOT NULL,
    measured_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kind, step, variant)
);
COMMENT ON TABLE worker.durations IS 'How long a step took in the last 100 successes: where an ETA comes from.';
COMMENT ON COLUMN worker.durations.variant IS 'hit or miss where the step''s facts say {"cache": "hit" or "miss"}; empty over all.';

-- Their results have changed shape, which CREATE OR REPLACE refuses; of two that differ by an argument with a default a call would be
-- ambiguous. A worker of the older release finds what it calls.
DROP FUNCTION IF EXISTS worker.retry(uuid, text);
DROP FUNCTION IF EXISTS worker.claim(int, text[], int, uuid[]);
DROP FUNCTION IF EXISTS worker.beat(int, int);
DROP FUNCTION IF EXISTS worker.to_ring(int, int);
