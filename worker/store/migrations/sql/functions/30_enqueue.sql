-- Refusals. The class MW is ours: MW001 a live job with other args, MW002 an idempotency key used with other args,
-- MW003 only goes forward, MW004 nothing to retry, MW005 cannot be skipped.

CREATE OR REPLACE FUNCTION worker.live_again(p_live worker.jobs, p_kind worker.kinds, p_args jsonb) RETURNS void
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
               run_at = CASE WHEN state IN ('blocked', 'waiting') THEN clock_timestamp() ELSE run_at END,
               due = due OR state IN ('blocked', 'waiting'), rung_at = NULL
        WHERE id = p_live.id;
        INSERT INTO worker.job_events (job_id, what, detail) VALUES (p_live.id, 'widened', v_wide);
        PERFORM worker.announce(p_live.id, 'queued');
    END IF;
END $$;

-- Takes an idempotency key for a job that is about to be; answers the job that it means already, NULL where it is ours now. One unique
-- index rules all keys, whatever becomes of the enqueue, so whoever comes second waits here and then sees what the first one got.
-- Before the job's own row, and a key is used for one request: only who uses one for two subjects can meet a deadlock by it.
CREATE OR REPLACE FUNCTION worker.take_key(p_kind worker.kinds, p_key text, p_args jsonb, p_job uuid) RETURNS uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_known record;
BEGIN
    FOR i IN 1..5 LOOP
        -- What the job is asked for by now, where the key created it: it may have been widened. Jobs of the first release have no alias.
        SELECT j.id, j.args INTO v_known FROM worker.jobs j WHERE j.kind = p_kind.kind AND j.idempotency_key = p_key;
        IF NOT FOUND THEN
            SELECT a.job_id AS id, a.args INTO v_known FROM worker.aliases a WHERE a.kind = p_kind.kind AND a.idempotency_key = p_key;
        END IF;
        IF FOUND THEN
            -- A job that was widened since is still the job of whoever asked for less; whoever asks for more has to say it anew.
            IF (v_known.args - p_kind.widens) <> (p_args - p_kind.widens)
               OR EXISTS (SELECT FROM unnest(p_kind.widens) AS w WHERE p_args -> w = 'true' AND v_known.args -> w <> 'true') THEN
                RAISE EXCEPTION 'enqueue %: idempotency key was used with other args by job %', p_kind.kind, v_known.id USING ERRCODE = 'MW002';
            END IF;
            RETURN v_known.id;
        END IF;
        INSERT INTO worker.aliases (kind, idempotency_key, job_id, args) VALUES (p_kind.kind, p_key, p_job, p_args) ON CONFLICT DO NOTHING;
        IF FOUND THEN
            RETURN NULL;
        END IF;
        -- Somebody used the key between our look and now: look again at what it means.
    END LOOP;
    RAISE EXCEPTION 'enqueue %: lost five races in a row', p_kind.kind USING ERRCODE = '40001';
END $$;

-- A live job that is joined stays locked until the caller commits, so that it cannot end without having seen what the caller wrote.
-- Hence a transaction that asks for several subjects does so in their order, or tries again at SQLSTATE 40P01; one that asks for
-- one thing never meets a deadlock.
CREATE OR REPLACE FUNCTION worker.enqueue(
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
    v_known uuid;
    v_org text;
    v_queue text;
    v_id uuid := gen_random_uuid();
    v_run_at timestamptz := coalesce(enqueue.run_at, clock_timestamp());
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
    IF enqueue.idempotency_key IS NOT NULL THEN
        v_known := worker.take_key(v_kind, enqueue.idempotency_key, v_args, v_id);
        IF v_known IS NOT NULL THEN
            RETURN QUERY SELECT v_known, false;
            RETURN;
        END IF;
    END IF;
    FOR i IN 1..5 LOOP
        SELECT * INTO v_old FROM worker.jobs j WHERE j.kind = v_kind.kind AND j.subject = v_subject
            AND j.state IN ('queued', 'running', 'waiting', 'blocked') FOR NO KEY UPDATE;
        IF FOUND THEN
            PERFORM worker.live_again(v_old, v_kind, v_args);
            IF enqueue.idempotency_key IS NOT NULL THEN
                UPDATE worker.aliases a SET job_id = v_old.id WHERE a.kind = v_kind.kind AND a.idempotency_key = enqueue.idempotency_key;
            END IF;
            RETURN QUERY SELECT v_old.id, false;
            RETURN;
        END IF;
        SELECT q.org, q.queue INTO v_org, v_queue FROM worker.queue_of(v_kind, v_args) AS q;
        INSERT INTO worker.jobs (id, kind, subject, org, queue, args, steps, definition, only_forward, supersedes, idempotency_key, priority,
                                 run_at, due, requested_by, traceparent)
        VALUES (v_id, v_kind.kind, v_subject, v_org, v_queue, v_args, v_kind.steps, v_kind.definition, v_kind.only_forward, v_kind.supersedes,
                enqueue.idempotency_key, enqueue.priority, v_run_at, v_run_at <= clock_timestamp(), enqueue.requested_by, enqueue.traceparent)
        ON CONFLICT DO NOTHING;
        IF FOUND THEN
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
