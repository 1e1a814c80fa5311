-- How a job comes to rest: its subject is freed, whoever waits for it is told.

CREATE OR REPLACE FUNCTION worker.announce(p_job uuid, p_state text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_notify('worker_jobs', json_build_object('id', p_job, 'state', p_state)::text)
$$;

-- The subjects are free again and the next job of each may be claimed. Two statements on purpose: the second must
-- see what others committed while the first waited for the subject's lock.
CREATE OR REPLACE FUNCTION worker.release(p_subjects text[], p_jobs uuid[]) RETURNS void
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

CREATE OR REPLACE FUNCTION worker.end_unclaimed(p_job uuid, p_state text, p_error jsonb, p_by uuid) RETURNS void
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

CREATE OR REPLACE FUNCTION worker.superseded_error(p_kind text, p_step text) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object('code', 'superseded', 'message', 'a ' || coalesce(p_kind, 'newer') || ' job took over', 'hint', '',
        'blame', 'tenant', 'step', p_step)
$$;

CREATE OR REPLACE FUNCTION worker.supersede(p_job uuid, p_subject text, p_kind text) RETURNS void
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
