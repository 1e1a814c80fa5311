-- What people ask for.

CREATE OR REPLACE FUNCTION worker.cancel(job_id uuid, reason text, requested_by text DEFAULT NULL) RETURNS boolean
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

CREATE OR REPLACE FUNCTION worker.retry(job_id uuid, requested_by text DEFAULT NULL) RETURNS boolean
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
CREATE OR REPLACE FUNCTION worker.wake(subject text) RETURNS void
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
