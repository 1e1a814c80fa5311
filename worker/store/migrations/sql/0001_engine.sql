-- The engine's own tables. The row is the truth; the functions beside this file are the only writers of what they write.
-- Locks are always taken in this order: rows of the platform, then jobs (by id), then subjects (by key).

CREATE TABLE worker.installation (
    only_row        boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id              uuid NOT NULL DEFAULT gen_random_uuid(),
    default_org     text NOT NULL DEFAULT '',
    default_backend text NOT NULL DEFAULT 'docker',
    default_host    text NOT NULL DEFAULT 'local',
    created_at      timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE worker.installation IS 'Who we are: outside resources carry this id, so that two installations on one host never touch each other.';
INSERT INTO worker.installation DEFAULT VALUES;

CREATE TABLE worker.kinds (
    kind           text PRIMARY KEY,
    subject_prefix text NOT NULL,
    subject_arg    text NOT NULL,
    args           jsonb NOT NULL,
    steps          text[] NOT NULL CHECK (cardinality(steps) > 0),
    queue          text,
    only_forward   boolean NOT NULL,
    supersedes     boolean NOT NULL DEFAULT false,
    widens         text[] NOT NULL DEFAULT '{}',
    written_at     timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE worker.kinds IS 'The catalogue of job kinds, written by migrate and compared by run.';
COMMENT ON COLUMN worker.kinds.args IS '{name: {"type": "uuid"|"text"|"boolean", "required": bool, "default": any}}';
COMMENT ON COLUMN worker.kinds.queue IS 'NULL: the queue of the workspace''s own host, <backend>.<host>.';
COMMENT ON COLUMN worker.kinds.widens IS 'Boolean args that a second enqueue may turn on while the job lives.';

CREATE TABLE worker.processes (
    id          int PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name        text NOT NULL,
    pid         int NOT NULL,
    queues      text[] NOT NULL DEFAULT '{}',
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    lease_until timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE worker.processes IS 'One row for each start of a worker process: an identity is never used twice.';

CREATE TABLE worker.subjects (
    key    text PRIMARY KEY,
    fence  bigint NOT NULL DEFAULT 0,
    job_id uuid
) WITH (fillfactor = 50);
COMMENT ON TABLE worker.subjects IS 'One row for each workspace or tenant: who holds it, and a fence that only grows.';

CREATE TABLE worker.placements (
    workspace_id uuid PRIMARY KEY,
    org          text NOT NULL,
    backend      text NOT NULL,
    host         text NOT NULL,
    model        text,
    placed_at    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN worker.placements.model IS 'As asked for at creation: the platform''s workspaces have no column for it. NULL: the runtime''s default.';

CREATE TABLE worker.jobs (
    id                  uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    seq                 bigint GENERATED ALWAYS AS IDENTITY,
    kind                text NOT NULL,
    subject             text NOT NULL,
    org                 text NOT NULL DEFAULT '',
    queue               text NOT NULL,
    args                jsonb NOT NULL,
    steps               text[] NOT NULL,
    only_forward        boolean NOT NULL,
    idempotency_key     text,
    state               text NOT NULL DEFAULT 'queued'
        CHECK (state IN ('queued', 'running', 'waiting', 'blocked', 'succeeded', 'failed', 'cancelled')),
    direction           text NOT NULL DEFAULT 'forward' CHECK (direction IN ('forward', 'back')),
    position            smallint NOT NULL DEFAULT 0,
    attempt             int NOT NULL DEFAULT 0,
    priority            smallint NOT NULL DEFAULT 100,
    run_at              timestamptz NOT NULL DEFAULT now(),
    parked              boolean NOT NULL DEFAULT false,
    woken               boolean NOT NULL DEFAULT false,
    process_id          int,
    fence               bigint,
    claims              int NOT NULL DEFAULT 0,
    crashes             int NOT NULL DEFAULT 0,
    cancel_requested_at timestamptz,
    superseded_by       uuid,
    waiting_for         text,
    error               jsonb,
    rung_at             timestamptz,
    requested_by        text,
    traceparent         text,
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at          timestamptz,
    finished_at         timestamptz
) WITH (fillfactor = 50);
COMMENT ON COLUMN worker.jobs.parked IS 'Behind another job on its subject: out of the ready index until that one comes to rest.';
COMMENT ON COLUMN worker.jobs.woken IS 'An event came while the job was running: its next wait is over at once.';
COMMENT ON COLUMN worker.jobs.position IS 'The step it waits, rests or was last claimed at; a running job is ahead of it, see worker.steps.';
COMMENT ON COLUMN worker.jobs.fence IS 'The subject''s fence at the claim: every later write must show it.';
CREATE UNIQUE INDEX jobs_idempotency ON worker.jobs (kind, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX jobs_live ON worker.jobs (kind, subject) WHERE state IN ('queued', 'running', 'waiting', 'blocked');
CREATE INDEX jobs_ready ON worker.jobs (priority, run_at, seq) WHERE state IN ('queued', 'waiting') AND NOT parked;
CREATE INDEX jobs_queued ON worker.jobs (subject, priority, seq) WHERE state = 'queued';
CREATE INDEX jobs_subject ON worker.jobs (subject, seq);
CREATE INDEX jobs_process ON worker.jobs (process_id) WHERE state = 'running';

CREATE TABLE worker.steps (
    job_id      uuid NOT NULL,
    direction   text NOT NULL,
    position    smallint NOT NULL,
    name        text NOT NULL,
    status      text NOT NULL CHECK (status IN ('waiting', 'done', 'failed')),
    attempt     int NOT NULL,
    fence       bigint NOT NULL,
    facts       jsonb NOT NULL DEFAULT '{}',
    error       jsonb,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz,
    PRIMARY KEY (job_id, direction, position)
);
COMMENT ON TABLE worker.steps IS 'Each finished step once. No foreign key, because it would lock and look up the job at every insert.';

CREATE TABLE worker.job_events (
    id     bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    job_id uuid NOT NULL,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    what   text NOT NULL,
    actor  text,
    detail jsonb
);
CREATE INDEX job_events_job ON worker.job_events (job_id, id);

CREATE TABLE worker.ledger (
    id           bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    backend      text NOT NULL,
    host         text NOT NULL,
    kind         text NOT NULL,
    name         text NOT NULL,
    subject      text NOT NULL,
    job_id       uuid,
    state        text NOT NULL CHECK (state IN ('intended', 'exists', 'gone')),
    handle       text,
    intended_at  timestamptz NOT NULL DEFAULT now(),
    gone_at      timestamptz
);
COMMENT ON TABLE worker.ledger IS 'Every outside resource, written before it exists and closed when a fresh listing shows it absent.';
CREATE UNIQUE INDEX ledger_present ON worker.ledger (backend, host, kind, name) WHERE state <> 'gone';
CREATE INDEX ledger_subject ON worker.ledger (subject);

CREATE TABLE worker.builds (
    key         text PRIMARY KEY,
    runtime     text NOT NULL,
    sha         text NOT NULL,
    host        text NOT NULL,
    state       text NOT NULL CHECK (state IN ('building', 'built', 'failed')),
    process_id  int,
    job_id      uuid,
    reference   text,
    error       jsonb,
    log         text NOT NULL DEFAULT '',
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz
);
COMMENT ON TABLE worker.builds IS 'One row for each (template commit, platform, builder, host): the lock of a build in progress and its log.';
COMMENT ON COLUMN worker.builds.process_id IS 'The builder. When it no longer lives, whoever asks next builds.';
COMMENT ON COLUMN worker.builds.log IS 'The last 4 MiB of output.';
