-- The schema of the first release, to the letter (0ca9726): what a database holds that is brought to head.
-- The engine's own tables. The row is the truth; every function here is the only writer of what it writes.
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

-- ---------------------------------------------------------------------------------------------------------------
-- Refusals. The class MW is ours: MW001 a live job with other args, MW002 an idempotency key used with other args,
-- MW003 only goes forward, MW004 nothing to retry.

CREATE FUNCTION worker.checked_args(p_kind worker.kinds, p_args jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text;
    v_rule jsonb;
    v_value jsonb;
    v_out jsonb := '{}';
    v_known text := 'known args: ' || coalesce((SELECT string_agg(key || ' (' || (value ->> 'type') || ')', ', ' ORDER BY key)
                                                FROM jsonb_each(p_kind.args)), 'none');
BEGIN
    IF p_args IS NULL OR jsonb_typeof(p_args) <> 'object' THEN
        RAISE EXCEPTION 'enqueue %: args must be a JSON object', p_kind.kind USING ERRCODE = '22023', HINT = v_known;
    END IF;
    FOR v_name IN SELECT k FROM jsonb_object_keys(p_args) AS k WHERE NOT p_kind.args ? k ORDER BY k LOOP
        RAISE EXCEPTION 'enqueue %: unknown arg %', p_kind.kind, to_json(left(v_name, 40))
            USING ERRCODE = '22023', HINT = v_known;
    END LOOP;
    FOR v_name, v_rule IN SELECT key, value FROM jsonb_each(p_kind.args) ORDER BY key LOOP
        v_value := p_args -> v_name;
        IF v_value IS NULL OR v_value = 'null' THEN
            IF (v_rule ->> 'required')::boolean THEN
                RAISE EXCEPTION 'enqueue %: arg % is missing', p_kind.kind, v_name USING ERRCODE = '22023', HINT = v_known;
            END IF;
            v_value := v_rule -> 'default';
        ELSIF v_rule ->> 'type' = 'uuid' THEN
            IF jsonb_typeof(v_value) <> 'string'
               OR (v_value #>> '{}') !~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' THEN
                RAISE EXCEPTION 'enqueue %: arg % is not a UUID', p_kind.kind, v_name USING ERRCODE = '22023', HINT = v_known;
            END IF;
            v_value := to_jsonb(lower(v_value #>> '{}'));
        ELSIF v_rule ->> 'type' = 'boolean' AND jsonb_typeof(v_value) <> 'boolean' THEN
            RAISE EXCEPTION 'enqueue %: arg % is not true or false', p_kind.kind, v_name USING ERRCODE = '22023', HINT = v_known;
        ELSIF v_rule ->> 'type' = 'text' AND (jsonb_typeof(v_value) <> 'string' OR length(v_value #>> '{}') NOT BETWEEN 1 AND 200) THEN
            RAISE EXCEPTION 'enqueue %: arg % is not a text of 1 to 200 characters', p_kind.kind, v_name USING ERRCODE = '22023', HINT = v_known;
        END IF;
        v_out := v_out || jsonb_build_object(v_name, v_value);
    END LOOP;
    RETURN v_out;
END $$;

CREATE FUNCTION worker.announce(p_job uuid, p_state text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_notify('worker_jobs', json_build_object('id', p_job, 'state', p_state)::text)
$$;

-- The subjects are free again and the next job of each may be claimed. Two statements on purpose: the second must
-- see what others committed while the first waited for the subject's lock.
CREATE FUNCTION worker.release(p_subjects text[], p_jobs uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_next uuid;
BEGIN
    WITH mine AS MATERIALIZED (
        SELECT s.key FROM worker.subjects s WHERE s.key = ANY (p_subjects) AND s.job_id = ANY (p_jobs) ORDER BY s.key FOR UPDATE
    )
    UPDATE worker.subjects s SET job_id = NULL FROM mine WHERE s.key = mine.key;
    FOR v_next IN
        UPDATE worker.jobs j SET parked = false, rung_at = NULL
        FROM (SELECT DISTINCT ON (q.subject) q.id FROM worker.jobs q
              WHERE q.subject = ANY (p_subjects) AND q.state = 'queued' AND q.parked
              ORDER BY q.subject, q.priority, q.seq) AS head
        WHERE j.id = head.id RETURNING j.id
    LOOP
        PERFORM worker.announce(v_next, 'queued');
    END LOOP;
END $$;

CREATE FUNCTION worker.end_unclaimed(p_job uuid, p_state text, p_error jsonb, p_by uuid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_subject text;
BEGIN
    UPDATE worker.jobs SET state = p_state, error = p_error, superseded_by = p_by, process_id = NULL, waiting_for = NULL,
           parked = false, finished_at = clock_timestamp()
    WHERE id = p_job RETURNING subject INTO v_subject;
    PERFORM worker.release(ARRAY[v_subject], ARRAY[p_job]);
    PERFORM worker.announce(p_job, p_state);
END $$;

CREATE FUNCTION worker.superseded_error(p_kind text, p_step text) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object('code', 'superseded', 'message', 'a ' || coalesce(p_kind, 'newer') || ' job took over', 'hint', '',
        'blame', 'tenant', 'step', p_step)
$$;

CREATE FUNCTION worker.supersede(p_job uuid, p_subject text, p_kind text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v worker.jobs;
BEGIN
    FOR v IN SELECT * FROM worker.jobs j
             WHERE j.subject = p_subject AND j.id <> p_job AND j.kind <> p_kind
               AND j.state IN ('queued', 'running', 'waiting', 'blocked')
             ORDER BY j.id FOR UPDATE
    LOOP
        INSERT INTO worker.job_events (job_id, what, detail) VALUES (v.id, 'superseded', jsonb_build_object('by', p_job));
        IF v.state = 'running' THEN
            UPDATE worker.jobs SET superseded_by = p_job WHERE id = v.id;
        ELSE
            PERFORM worker.end_unclaimed(v.id, 'cancelled', worker.superseded_error(p_kind, v.steps[v.position + 1]), p_job);
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION worker.queue_of(p_kind worker.kinds, p_args jsonb, OUT org text, OUT queue text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT p.org, p.backend || '.' || p.host INTO org, queue FROM worker.placements p
        WHERE p_kind.subject_prefix = 'workspace:' AND p.workspace_id = (p_args ->> p_kind.subject_arg)::uuid;
    IF NOT FOUND THEN
        -- Nobody placed it: it is where the ledger says, because the default may be another host by now.
        SELECT i.default_org, coalesce(l.place, i.default_backend || '.' || i.default_host) INTO org, queue FROM worker.installation i
            LEFT JOIN LATERAL (SELECT e.backend || '.' || e.host AS place FROM worker.ledger e WHERE e.state <> 'gone'
                AND e.subject = p_kind.subject_prefix || (p_args ->> p_kind.subject_arg) ORDER BY e.id DESC LIMIT 1) AS l ON true;
    END IF;
    queue := coalesce(p_kind.queue, queue);
END $$;

CREATE FUNCTION worker.live_again(p_live worker.jobs, p_kind worker.kinds, p_args jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text;
    v_wide jsonb := p_live.args;
BEGIN
    FOREACH v_name IN ARRAY p_kind.widens LOOP
        v_wide := v_wide || jsonb_build_object(v_name, (p_live.args -> v_name = 'true') OR (p_args -> v_name = 'true'));
    END LOOP;
    IF (p_live.args - p_kind.widens) <> (p_args - p_kind.widens) THEN
        RAISE EXCEPTION 'enqueue %: job % on % is live with other args', p_kind.kind, p_live.id, p_live.subject
            USING ERRCODE = 'MW001', HINT = 'wait for it or cancel it';
    END IF;
    IF v_wide <> p_live.args THEN
        UPDATE worker.jobs SET args = v_wide, woken = true,
               state = CASE WHEN state = 'blocked' THEN 'waiting' ELSE state END,
               run_at = CASE WHEN state IN ('blocked', 'waiting') THEN clock_timestamp() ELSE run_at END, rung_at = NULL
        WHERE id = p_live.id;
        INSERT INTO worker.job_events (job_id, what, detail) VALUES (p_live.id, 'widened', v_wide);
        PERFORM worker.announce(p_live.id, 'queued');
    END IF;
END $$;

CREATE FUNCTION worker.enqueue(
    kind text, args jsonb, idempotency_key text DEFAULT NULL, run_at timestamptz DEFAULT NULL,
    priority int DEFAULT 100, requested_by text DEFAULT NULL, traceparent text DEFAULT NULL)
RETURNS TABLE (job_id uuid, created boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_kind worker.kinds;
    v_args jsonb;
    v_subject text;
    v_old worker.jobs;
    v_org text;
    v_queue text;
    v_id uuid;
BEGIN
    SELECT * INTO v_kind FROM worker.kinds k WHERE k.kind = enqueue.kind;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'enqueue: unknown kind %', to_json(left(coalesce(enqueue.kind, ''), 60)) USING ERRCODE = '22023',
            HINT = 'known kinds: ' || coalesce((SELECT string_agg(k.kind, ', ' ORDER BY k.kind) FROM worker.kinds k), 'none');
    END IF;
    IF enqueue.priority IS NULL OR enqueue.priority NOT BETWEEN 0 AND 1000 THEN
        RAISE EXCEPTION 'enqueue %: priority must be 0 to 1000', v_kind.kind USING ERRCODE = '22023';
    END IF;
    IF length(enqueue.idempotency_key) NOT BETWEEN 1 AND 200 OR length(enqueue.requested_by) > 200 OR length(enqueue.traceparent) > 200 THEN
        RAISE EXCEPTION 'enqueue %: idempotency_key, requested_by and traceparent hold 1 to 200 characters', v_kind.kind
            USING ERRCODE = '22023', HINT = 'shorten what is longer; leave out what is empty';
    END IF;
    IF NOT isfinite(enqueue.run_at) THEN
        RAISE EXCEPTION 'enqueue %: run_at must be a moment', v_kind.kind USING ERRCODE = '22023';
    END IF;
    IF enqueue.traceparent !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        RAISE EXCEPTION 'enqueue %: traceparent is not one of W3C Trace Context', v_kind.kind USING ERRCODE = '22023';
    END IF;
    v_args := worker.checked_args(v_kind, enqueue.args);
    v_subject := v_kind.subject_prefix || coalesce(v_args ->> v_kind.subject_arg, '');
    FOR i IN 1..5 LOOP
        SELECT * INTO v_old FROM worker.jobs j WHERE j.kind = v_kind.kind AND j.idempotency_key = enqueue.idempotency_key;
        IF FOUND THEN
            IF v_old.args <> v_args THEN
                RAISE EXCEPTION 'enqueue %: idempotency key was used with other args by job %', v_kind.kind, v_old.id USING ERRCODE = 'MW002';
            END IF;
            RETURN QUERY SELECT v_old.id, false;
            RETURN;
        END IF;
        SELECT * INTO v_old FROM worker.jobs j WHERE j.kind = v_kind.kind AND j.subject = v_subject
            AND j.state IN ('queued', 'running', 'waiting', 'blocked') FOR NO KEY UPDATE;
        IF FOUND THEN
            PERFORM worker.live_again(v_old, v_kind, v_args);
            RETURN QUERY SELECT v_old.id, false;
            RETURN;
        END IF;
        SELECT q.org, q.queue INTO v_org, v_queue FROM worker.queue_of(v_kind, v_args) AS q;
        INSERT INTO worker.jobs (kind, subject, org, queue, args, steps, only_forward, idempotency_key, priority, run_at, requested_by, traceparent)
        VALUES (v_kind.kind, v_subject, v_org, v_queue, v_args, v_kind.steps, v_kind.only_forward, enqueue.idempotency_key,
                enqueue.priority, coalesce(enqueue.run_at, clock_timestamp()), enqueue.requested_by, enqueue.traceparent)
        ON CONFLICT DO NOTHING RETURNING id INTO v_id;
        IF v_id IS NOT NULL THEN
            IF v_kind.supersedes THEN
                PERFORM worker.supersede(v_id, v_subject, v_kind.kind);
            END IF;
            PERFORM worker.announce(v_id, 'queued');
            RETURN QUERY SELECT v_id, true;
            RETURN;
        END IF;
        -- A twin was committed between our look and our insert: look again, it is visible to the next statement.
    END LOOP;
    RAISE EXCEPTION 'enqueue %: lost five races in a row', v_kind.kind USING ERRCODE = '40001';
END $$;

CREATE FUNCTION worker.cancel(job_id uuid, reason text, requested_by text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v worker.jobs;
    v_error jsonb;
BEGIN
    SELECT * INTO v FROM worker.jobs j WHERE j.id = cancel.job_id FOR UPDATE;
    IF NOT FOUND OR v.state IN ('succeeded', 'failed', 'cancelled') THEN
        RETURN false;
    END IF;
    IF v.only_forward AND v.started_at IS NOT NULL THEN
        RAISE EXCEPTION 'cancel job %: a % that has begun only goes forward', v.id, v.kind USING ERRCODE = 'MW003';
    END IF;
    INSERT INTO worker.job_events (job_id, what, actor, detail)
        VALUES (v.id, 'cancel_requested', cancel.requested_by, jsonb_build_object('reason', left(cancel.reason, 500)));
    v_error := jsonb_build_object('code', 'cancelled', 'message', 'cancelled: ' || left(coalesce(cancel.reason, ''), 500),
        'hint', '', 'blame', 'operator', 'step', v.steps[v.position + 1]);
    IF v.started_at IS NULL THEN
        PERFORM worker.end_unclaimed(v.id, 'cancelled', v_error, NULL);
    ELSE
        UPDATE worker.jobs SET cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp()), error = v_error, woken = true,
               state = CASE WHEN state = 'blocked' THEN 'waiting' ELSE state END, rung_at = NULL,
               run_at = CASE WHEN state IN ('waiting', 'blocked') THEN clock_timestamp() ELSE run_at END
        WHERE id = v.id;
        PERFORM worker.announce(v.id, 'queued');
    END IF;
    RETURN true;
END $$;

CREATE FUNCTION worker.retry(job_id uuid, requested_by text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v worker.jobs;
BEGIN
    SELECT * INTO v FROM worker.jobs j WHERE j.id = retry.job_id FOR UPDATE;
    IF NOT FOUND OR v.state NOT IN ('failed', 'blocked', 'waiting') THEN
        RAISE EXCEPTION 'retry job %: %', retry.job_id, coalesce('it is ' || v.state, 'no such job') USING ERRCODE = 'MW004',
            HINT = 'failed, blocked and waiting jobs can be retried';
    END IF;
    IF v.state = 'failed' THEN
        IF EXISTS (SELECT FROM worker.jobs o WHERE o.kind = v.kind AND o.subject = v.subject
                   AND o.state IN ('queued', 'running', 'waiting', 'blocked')) THEN
            RAISE EXCEPTION 'retry job %: another % on % is live', v.id, v.kind, v.subject USING ERRCODE = 'MW001';
        END IF;
        -- It was undone, so nothing of it is left to build on: from the first step.
        DELETE FROM worker.steps s WHERE s.job_id = v.id;
        UPDATE worker.jobs SET state = 'queued', direction = 'forward', position = 0, finished_at = NULL, parked = false WHERE id = v.id;
    ELSE
        DELETE FROM worker.steps s WHERE s.job_id = v.id AND s.status = 'waiting';
        UPDATE worker.jobs SET state = 'waiting' WHERE id = v.id;
    END IF;
    UPDATE worker.jobs SET attempt = 0, crashes = 0, waiting_for = NULL, rung_at = NULL,
           -- A job that undoes because it was cancelled stays cancelled, and still says why.
           cancel_requested_at = CASE WHEN direction = 'back' THEN cancel_requested_at END,
           error = CASE WHEN direction = 'back' THEN error END, run_at = clock_timestamp() WHERE id = v.id;
    INSERT INTO worker.job_events (job_id, what, actor, detail) VALUES (v.id, 'retried', retry.requested_by, v.error);
    PERFORM worker.announce(v.id, 'queued');
    RETURN true;
END $$;

-- Something happened outside that whoever waits on this subject wants to know.
CREATE FUNCTION worker.wake(subject text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v uuid;
BEGIN
    FOR v IN
        UPDATE worker.jobs j SET woken = true, rung_at = NULL,
               run_at = CASE WHEN j.state = 'waiting' THEN clock_timestamp() ELSE j.run_at END
        WHERE j.subject = wake.subject AND j.state IN ('waiting', 'running') RETURNING j.id
    LOOP
        PERFORM worker.announce(v, 'queued');
    END LOOP;
END $$;

-- ---------------------------------------------------------------------------------------------------------------
-- What workers call.

CREATE FUNCTION worker.claim(p_process int, p_queues text[], p_n int, p_ids uuid[] DEFAULT NULL)
RETURNS TABLE (id uuid, kind text, subject text, args jsonb, steps text[], only_forward boolean, direction text, position_ int,
               attempt int, fence bigint, claims int, stop text, error jsonb, requested_by text, traceparent text, past jsonb)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_found uuid[];
    v_suspects uuid[];
    v_taken uuid[];
    v record;
BEGIN
    -- A job whose step has seen three processes die is a suspect, and no process holds two: otherwise one bad job takes its
    -- neighbours along each time, and all of them end blocked for what it did.
    IF p_ids IS NULL THEN
        SELECT array_agg(c.id) FILTER (WHERE c.crashes < 3), array_agg(c.id) FILTER (WHERE c.crashes >= 3) INTO v_found, v_suspects FROM (
            SELECT j.id, j.crashes FROM worker.jobs j
            WHERE j.state IN ('queued', 'waiting') AND NOT j.parked AND j.run_at <= clock_timestamp() AND j.queue = ANY (p_queues)
              AND (j.crashes < 3 OR NOT EXISTS (SELECT FROM worker.jobs r WHERE r.process_id = p_process AND r.state = 'running' AND r.crashes >= 3))
            ORDER BY j.priority, j.run_at, j.seq LIMIT p_n FOR UPDATE SKIP LOCKED) AS c;
    ELSE
        SELECT array_agg(c.id) FILTER (WHERE c.crashes < 3), array_agg(c.id) FILTER (WHERE c.crashes >= 3) INTO v_found, v_suspects FROM (
            SELECT j.id, j.crashes FROM worker.jobs j
            WHERE j.id = ANY (p_ids) AND j.state IN ('queued', 'waiting') AND NOT j.parked AND j.run_at <= clock_timestamp()
              AND j.queue = ANY (p_queues)
              AND (j.crashes < 3 OR NOT EXISTS (SELECT FROM worker.jobs r WHERE r.process_id = p_process AND r.state = 'running' AND r.crashes >= 3))
            ORDER BY j.id LIMIT p_n FOR UPDATE SKIP LOCKED) AS c;
    END IF;
    v_found := coalesce(v_found, '{}') || v_suspects[1:1];
    IF cardinality(v_found) = 0 THEN
        RETURN;
    END IF;
    -- The conditional upsert is the mutual exclusion: losers get no row, and no unique index is ever violated.
    WITH head AS MATERIALIZED (
        SELECT DISTINCT ON (j.subject) j.subject, j.id FROM worker.jobs j WHERE j.id = ANY (v_found)
          -- Somebody may have the row of an older one locked for a moment: it was skipped above, and must not be overtaken.
          AND (j.state = 'waiting' OR NOT EXISTS (
              SELECT FROM worker.jobs o WHERE o.subject = j.subject AND o.state = 'queued' AND NOT o.parked
                AND o.run_at <= clock_timestamp() AND (o.priority, o.seq) < (j.priority, j.seq)))
        ORDER BY j.subject, (j.state = 'waiting') DESC, j.priority, j.seq
    ), own AS (
        INSERT INTO worker.subjects AS s (key, fence, job_id) SELECT h.subject, 1, h.id FROM head h ORDER BY h.subject
        ON CONFLICT (key) DO UPDATE SET fence = s.fence + 1, job_id = excluded.job_id
            WHERE s.job_id IS NULL OR s.job_id = excluded.job_id
        RETURNING s.key, s.fence AS fence, s.job_id
    ), won AS (
        UPDATE worker.jobs j SET state = 'running', process_id = p_process, fence = own.fence, claims = j.claims + 1, woken = false,
               waiting_for = NULL, started_at = coalesce(j.started_at, clock_timestamp()),
               error = CASE WHEN j.direction = 'back' OR j.cancel_requested_at IS NOT NULL THEN j.error END
        FROM own WHERE j.id = own.job_id RETURNING j.id
    )
    SELECT array_agg(won.id) INTO v_taken FROM won;
    -- A job that supersedes ends who holds its subject, also one that was stored later or at the same moment and came first.
    -- A holder whose row is locked is asked again at the next look, never waited for: it may be waiting for the subject's row.
    FOR v IN
        SELECT h.id, h.state, j.id AS taker, j.kind, h.steps[h.position + 1] AS step FROM worker.jobs j
        JOIN worker.kinds k ON k.kind = j.kind AND k.supersedes
        JOIN worker.subjects s ON s.key = j.subject AND s.job_id <> j.id
        JOIN worker.jobs h ON h.id = s.job_id AND h.superseded_by IS NULL AND h.kind <> j.kind
        WHERE j.id = ANY (v_found) FOR UPDATE OF h SKIP LOCKED
    LOOP
        INSERT INTO worker.job_events (job_id, what, detail) VALUES (v.id, 'superseded', jsonb_build_object('by', v.taker));
        IF v.state = 'running' THEN
            UPDATE worker.jobs j SET superseded_by = v.taker WHERE j.id = v.id;
        ELSE
            PERFORM worker.end_unclaimed(v.id, 'cancelled', worker.superseded_error(v.kind, v.step), v.taker);
        END IF;
    END LOOP;
    -- Whoever lost its subject leaves the ready index until the holder rests. The upsert above locked the subject's row
    -- even where it changed nothing, so a holder that is about to rest cannot miss what is parked here.
    UPDATE worker.jobs j SET parked = true
    WHERE j.id = ANY (v_found) AND j.state = 'queued' AND NOT j.id = ANY (coalesce(v_taken, '{}'))
      AND EXISTS (SELECT FROM worker.subjects s JOIN worker.jobs h ON h.id = s.job_id WHERE s.key = j.subject AND s.job_id <> j.id
          AND (h.superseded_by IS NOT NULL OR NOT EXISTS (SELECT FROM worker.kinds k WHERE k.kind = j.kind AND k.kind <> h.kind AND k.supersedes)));
    RETURN QUERY
        SELECT j.id, j.kind, j.subject, j.args, j.steps, j.only_forward, j.direction, j.position::int, j.attempt, j.fence, j.claims,
               CASE WHEN j.superseded_by IS NOT NULL THEN 'superseded' WHEN j.cancel_requested_at IS NOT NULL THEN 'cancelled' END,
               j.error, j.requested_by, j.traceparent,
               CASE WHEN j.claims > 1 THEN (
                   SELECT jsonb_agg(jsonb_build_object('direction', s.direction, 'position', s.position, 'name', s.name, 'status', s.status,
                          'facts', s.facts, 'ago_ms', extract(epoch FROM clock_timestamp() - s.started_at) * 1000) ORDER BY s.direction, s.position)
                   FROM worker.steps s WHERE s.job_id = j.id) END
        FROM worker.jobs j WHERE j.id = ANY (v_taken) ORDER BY j.priority, j.run_at, j.seq;
END $$;

-- The one writer of a job's progress: any number of decisions of one process in one statement, each checked against its fence
-- under a row lock. A decision whose job is not in the answer was fenced: its caller writes nothing more.
-- In: [{job, fence, direction, position, name, status, facts, error, attempt, took_ms, next: go|wait|block|rest,
--       to_direction, to_position, to_attempt, after_ms, what, rest, job_error}]
-- Out: [{job, stop: null|superseded|cancelled, args, again}]; again: it waits and is due already, because a call came while it ran.
CREATE FUNCTION worker.apply(p_decisions jsonb) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_reply jsonb;
    v_rested uuid[];
    v_subjects text[];
BEGIN
    WITH d AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(p_decisions) AS d(job uuid, fence bigint, direction text, "position" int, name text, status text,
            facts jsonb, error jsonb, attempt int, took_ms float8, next text, to_direction text, to_position int, to_attempt int,
            after_ms float8, what text, rest text, job_error jsonb)
    ), held AS MATERIALIZED (
        SELECT j.id, j.subject, j.args, j.superseded_by, j.cancel_requested_at FROM worker.jobs j JOIN d ON j.id = d.job
        WHERE j.fence = d.fence AND j.state = 'running' ORDER BY j.id FOR NO KEY UPDATE OF j
    ), noted AS (
        INSERT INTO worker.steps AS s (job_id, direction, position, name, status, attempt, fence, facts, error, started_at, finished_at)
        SELECT d.job, d.direction, d.position, d.name, d.status, d.attempt, d.fence, coalesce(d.facts, '{}'), d.error,
               clock_timestamp() - make_interval(secs => d.took_ms / 1000),
               CASE WHEN d.status <> 'waiting' THEN clock_timestamp() END
        FROM d JOIN held h ON h.id = d.job WHERE d.status IS NOT NULL
        ON CONFLICT (job_id, direction, position) DO UPDATE SET status = excluded.status, attempt = excluded.attempt, fence = excluded.fence,
            facts = excluded.facts, error = excluded.error, finished_at = excluded.finished_at
    ), moved AS (
        UPDATE worker.jobs j SET
            state = CASE d.next WHEN 'go' THEN 'running'
                -- Superseded in its very last step it has not succeeded: whatever it made is about to go.
                WHEN 'rest' THEN CASE WHEN j.superseded_by IS NULL THEN d.rest ELSE 'cancelled' END
                -- Who was superseded, cancelled or widened meanwhile does not block: the next claim sees to it.
                WHEN 'block' THEN CASE WHEN j.woken OR j.superseded_by IS NOT NULL THEN 'waiting' ELSE 'blocked' END
                ELSE 'waiting' END,
            process_id = CASE WHEN d.next = 'go' THEN j.process_id END,
            direction = d.to_direction, position = d.to_position, attempt = d.to_attempt, waiting_for = d.what,
            error = CASE WHEN d.next = 'rest' AND j.superseded_by IS NOT NULL
                              THEN worker.superseded_error((SELECT o.kind FROM worker.jobs o WHERE o.id = j.superseded_by), d.name)
                         WHEN d.next = 'rest' AND d.rest = 'succeeded' THEN d.job_error
                         ELSE coalesce(d.job_error, j.error) END,
            -- Whatever was decided, this step did not kill its process.
            crashes = 0, rung_at = NULL, woken = false,
            run_at = CASE WHEN d.next NOT IN ('wait', 'block') THEN j.run_at
                          -- Not by the request for a cancel itself, which stays with the job while it undoes and backs off.
                          WHEN j.woken OR j.superseded_by IS NOT NULL THEN clock_timestamp()
                          WHEN d.next = 'block' THEN j.run_at
                          ELSE clock_timestamp() + make_interval(secs => d.after_ms / 1000) END,
            finished_at = CASE WHEN d.next = 'rest' THEN clock_timestamp() END
        FROM d JOIN held h ON h.id = d.job
        WHERE j.id = h.id AND (d.next <> 'go' OR d.to_direction <> j.direction)
        RETURNING j.id, j.subject, d.next, d.next = 'wait' AND j.run_at <= clock_timestamp() AS again
    )
    SELECT (SELECT jsonb_agg(jsonb_build_object('job', h.id, 'args', h.args, 'stop',
                CASE WHEN h.superseded_by IS NOT NULL THEN 'superseded' WHEN h.cancel_requested_at IS NOT NULL THEN 'cancelled' END,
                'again', coalesce(m.again, false))) FROM held h LEFT JOIN moved m ON m.id = h.id),
           (SELECT array_agg(m.id) FROM moved m WHERE m.next = 'rest'),
           (SELECT array_agg(m.subject) FROM moved m WHERE m.next = 'rest')
    INTO v_reply, v_rested, v_subjects;
    IF v_rested IS NOT NULL THEN
        PERFORM worker.release(v_subjects, v_rested);
        PERFORM worker.announce(j.id, j.state) FROM worker.jobs j WHERE j.id = ANY (v_rested);
    END IF;
    RETURN coalesce(v_reply, '[]');
END $$;

CREATE FUNCTION worker.beat(p_process int, p_lease_ms int, OUT alive boolean, OUT stop uuid[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A lease that is over is never revived: whoever took the work over must be able to rely on that.
    UPDATE worker.processes p SET lease_until = clock_timestamp() + make_interval(secs => p_lease_ms / 1000.0)
        WHERE p.id = p_process AND p.lease_until > clock_timestamp();
    alive := FOUND;
    SELECT coalesce(array_agg(j.id), '{}') INTO stop FROM worker.jobs j
        WHERE j.process_id = p_process AND j.state = 'running' AND (j.superseded_by IS NOT NULL OR j.cancel_requested_at IS NOT NULL);
END $$;

-- Takes work back from processes whose lease ended or whose session lock is free (their process died).
CREATE FUNCTION worker.reap(p_namespace int, p_max_crashes int) RETURNS TABLE (job_id uuid, by_lease boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v record;
    v_crashes int;
    v_hopeless boolean;
BEGIN
    FOR v IN
        WITH dead AS MATERIALIZED (
            SELECT p.id, p.lease_until < clock_timestamp() AS by_lease FROM worker.processes p
            WHERE p.lease_until < clock_timestamp()
               -- After a server restart every session lock is free and means nothing: only the lease counts.
               OR (p.started_at > pg_postmaster_start_time() AND NOT EXISTS (
                       SELECT FROM pg_locks l JOIN pg_database b ON b.oid = l.database AND b.datname = current_database()
                       WHERE l.locktype = 'advisory' AND l.classid = p_namespace::oid AND l.objid = p.id::oid AND l.granted))
        )
        SELECT j.id, j.subject, j.crashes, j.fence, j.steps, j.position, d.by_lease, d.id AS process,
               NOT j.woken AND j.superseded_by IS NULL AS may_block
        FROM worker.jobs j JOIN dead d ON j.process_id = d.id
        -- By subject, because the loop locks those in this order and claims do, too; the jobs themselves are never waited for.
        WHERE j.state = 'running' ORDER BY j.subject LIMIT 500 FOR UPDATE OF j SKIP LOCKED
    LOOP
        -- Counted for one step: what this claim has written since shows that an earlier one did not kill its process.
        v_crashes := 1 + CASE WHEN EXISTS (SELECT FROM worker.steps s WHERE s.job_id = v.id AND s.fence = v.fence) THEN 0 ELSE v.crashes END;
        v_hopeless := v_crashes >= p_max_crashes AND v.may_block;
        -- The fence moves now and not at the next claim, so that a zombie is refused from this moment on.
        UPDATE worker.subjects s SET fence = s.fence + 1 WHERE s.key = v.subject AND s.job_id = v.id;
        UPDATE worker.jobs j SET fence = s.fence, process_id = NULL, crashes = v_crashes, rung_at = NULL,
               run_at = clock_timestamp() + least(v_crashes - 1, 6) * interval '1 second',
               state = CASE WHEN v_hopeless THEN 'blocked' ELSE 'waiting' END,
               waiting_for = CASE WHEN v_hopeless THEN 'the step kills its process again and again' END,
               error = CASE WHEN v_hopeless THEN jsonb_build_object('code', 'crash_loop', 'hint', 'read the worker''s log, then retry the job',
                   'message', 'the process died ' || v_crashes || ' times during this step',
                   'blame', 'internal', 'step', v.steps[v.position + 1]) ELSE j.error END
        FROM worker.subjects s WHERE j.id = v.id AND s.key = j.subject;
        INSERT INTO worker.job_events (job_id, what, detail) VALUES (v.id, 'taken_over',
            jsonb_build_object('by', CASE WHEN v.by_lease THEN 'lease' ELSE 'session' END, 'from_process', v.process));
        PERFORM worker.announce(v.id, 'queued');
        job_id := v.id;
        by_lease := v.by_lease;
        RETURN NEXT;
    END LOOP;
    DELETE FROM worker.processes p WHERE p.lease_until < clock_timestamp() - interval '1 hour'
        AND NOT EXISTS (SELECT FROM worker.jobs j WHERE j.process_id = p.id);
END $$;

-- Which ready jobs nobody was rung for yet, or too long ago. The job's row is the outbox.
CREATE FUNCTION worker.to_ring(p_n int, p_again_ms int) RETURNS TABLE (id uuid, kind text, queue text, lost boolean)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH due AS MATERIALIZED (
        SELECT j.id, j.rung_at IS NOT NULL AS lost FROM worker.jobs j
        WHERE j.state IN ('queued', 'waiting') AND NOT j.parked AND j.run_at <= clock_timestamp()
          AND (j.rung_at IS NULL OR j.rung_at < clock_timestamp() - make_interval(secs => p_again_ms / 1000.0))
        ORDER BY j.priority, j.run_at, j.seq LIMIT p_n FOR UPDATE SKIP LOCKED
    )
    UPDATE worker.jobs j SET rung_at = clock_timestamp() FROM due WHERE j.id = due.id RETURNING j.id, j.kind, j.queue, due.lost
$$;

-- ---------------------------------------------------------------------------------------------------------------
-- What people and programs read.

CREATE VIEW worker.job_status AS
SELECT j.id, j.kind, j.subject, j.state,
       -- What failed is the step that a person asks about, and not the last one that was undone.
       CASE WHEN j.state IN ('failed', 'cancelled') AND j.error ? 'step' THEN j.error ->> 'step' ELSE j.steps[1 + coalesce(CASE j.direction
           WHEN 'forward' THEN least(greatest(j.position, done.ahead), cardinality(j.steps) - 1) ELSE j.position END, 0)] END AS step,
       j.direction, j.attempt, j.requested_by, j.priority, j.run_at,
       jsonb_build_object('done', coalesce(done.n, 0), 'total', cardinality(j.steps),
           'fraction', round(coalesce(done.n, 0)::numeric / cardinality(j.steps), 3), 'eta_seconds', NULL, 'rate_per_second', NULL) AS progress,
       j.created_at, j.started_at, j.finished_at, j.error, coalesce(done.steps, '[]') AS steps,
       j.waiting_for, j.org, j.queue, j.args, j.cancel_requested_at, j.superseded_by, j.parked
FROM worker.jobs j
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE s.direction = 'forward' AND s.status = 'done') AS n,
           max(s.position + 1) FILTER (WHERE s.direction = 'forward' AND s.status = 'done') AS ahead,
           jsonb_agg(jsonb_build_object('name', CASE s.direction WHEN 'back' THEN 'undo ' ELSE '' END || s.name, 'state', s.status,
               'attempts', s.attempt + 1, 'started_at', s.started_at, 'finished_at', s.finished_at,
               'duration_ms', round(extract(epoch FROM coalesce(s.finished_at, clock_timestamp()) - s.started_at) * 1000), 'facts', s.facts)
               ORDER BY s.direction DESC, CASE s.direction WHEN 'forward' THEN s.position ELSE -s.position END) AS steps
    FROM worker.steps s WHERE s.job_id = j.id) AS done ON true;
COMMENT ON VIEW worker.job_status IS 'Stable: the JSON of `jobs show` as columns.';

CREATE VIEW worker.violations AS
SELECT 'running without a living process' AS what, j.id::text AS which FROM worker.jobs j LEFT JOIN worker.processes p ON p.id = j.process_id
    WHERE j.state = 'running' AND (p.id IS NULL OR p.lease_until < clock_timestamp() - interval '10 seconds')
UNION ALL SELECT 'two jobs hold one subject', j.subject FROM worker.jobs j
    WHERE j.state IN ('running', 'waiting', 'blocked') GROUP BY j.subject HAVING count(*) > 1
UNION ALL SELECT 'fence of job and subject differ', j.id::text FROM worker.jobs j JOIN worker.subjects s ON s.key = j.subject
    WHERE j.state = 'running' AND (s.job_id IS DISTINCT FROM j.id OR s.fence IS DISTINCT FROM j.fence)
UNION ALL SELECT 'subject held by a job at rest', s.key FROM worker.subjects s JOIN worker.jobs j ON j.id = s.job_id
    WHERE j.state IN ('succeeded', 'failed', 'cancelled')
UNION ALL SELECT 'gap before a finished step', j.id::text FROM worker.jobs j JOIN worker.steps s ON s.job_id = j.id
    WHERE s.direction = 'forward' AND s.status = 'done' AND s.position > 0 AND NOT EXISTS (
        SELECT FROM worker.steps b WHERE b.job_id = s.job_id AND b.direction = 'forward' AND b.status = 'done' AND b.position = s.position - 1)
UNION ALL SELECT 'at rest without an end', j.id::text FROM worker.jobs j
    WHERE j.state IN ('succeeded', 'failed', 'cancelled') AND j.finished_at IS NULL
UNION ALL SELECT 'ended before all steps were done', j.id::text FROM worker.jobs j
    WHERE j.state = 'succeeded' AND cardinality(j.steps) <> (
        SELECT count(*) FROM worker.steps s WHERE s.job_id = j.id AND s.direction = 'forward' AND s.status = 'done')
UNION ALL SELECT 'failed without an error', j.id::text FROM worker.jobs j WHERE j.state IN ('failed', 'blocked') AND j.error IS NULL
UNION ALL SELECT 'parked behind nobody', j.id::text FROM worker.jobs j LEFT JOIN worker.subjects s ON s.key = j.subject
    WHERE j.state = 'queued' AND j.parked AND s.job_id IS NULL
      AND NOT EXISTS (SELECT FROM worker.jobs o WHERE o.subject = j.subject AND o.state = 'queued' AND NOT o.parked);
COMMENT ON VIEW worker.violations IS 'Invariants: empty at the end of every test, a metric in production.';

CREATE FUNCTION worker.refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% on %: the table is append-only', TG_OP, TG_TABLE_NAME USING ERRCODE = '42501';
END $$;
