-- How a job comes to rest: its subject is freed, whoever waits for it is told. Locks are always taken in one order: rows of
-- the platform, then jobs (by id), then their own subjects (by key); everything else is only taken where nobody holds it.

CREATE OR REPLACE FUNCTION worker.announce(p_job uuid, p_state text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_notify('worker_jobs', json_build_object('id', p_job, 'state', p_state)::text)
$$;

-- The position at which a job goes on: `jobs.position` says where it was claimed last, and what was passed since is in its steps.
-- Beyond all of them and not one by one, because on the way back a step that left nothing behind has no row. The view
-- worker.job_status says the same once more (90_views.sql, `here`): the client role may read it, and not execute this.
CREATE OR REPLACE FUNCTION worker.stands_at(p_job worker.jobs) RETURNS int
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE p_job.direction
        WHEN 'forward' THEN least(greatest(p_job.position, max(s.position) + 1), cardinality(p_job.steps) - 1)
        ELSE greatest(least(p_job.position, min(s.position) - 1), 0) END
    FROM worker.steps s WHERE s.job_id = p_job.id AND s.direction = p_job.direction AND s.status IN ('done', 'skipped')
$$;

-- What follows from a rest: subjects are free, parents can see how their children ended, children that were never started are
-- dropped. The next job of a subject and the parent are called by the next claim (worker.call), because their rows may be locked
-- by somebody who waits for one of ours.
CREATE OR REPLACE FUNCTION worker.rested(p_jobs uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    -- Arrays instead of joins: index probes, however small a table was when the plan was made.
    WITH mine AS MATERIALIZED (
        SELECT s.key FROM worker.subjects s
        WHERE s.key = ANY (ARRAY(SELECT j.subject FROM worker.jobs j WHERE j.id = ANY (p_jobs))) AND s.job_id = ANY (p_jobs)
        ORDER BY s.key FOR UPDATE
    )
    UPDATE worker.subjects s SET job_id = NULL WHERE s.key = ANY (ARRAY(SELECT m.key FROM mine m));
    UPDATE worker.children c SET state = (SELECT j.state FROM worker.jobs j WHERE j.id = c.job_id), told = false
        WHERE c.job_id = ANY (p_jobs);
    UPDATE worker.children c SET state = 'cancelled', told = true
        WHERE c.parent = ANY (p_jobs) AND c.state IS NULL AND c.job_id IS NULL;
    PERFORM worker.announce(j.id, j.state) FROM worker.jobs j WHERE j.id = ANY (p_jobs);
END $$;

-- For calls of the first release that were under way while the schema changed: their bodies go on and call this at each rest. What it did
-- itself is done by the next claim now. Goes with the release after this one.
CREATE OR REPLACE FUNCTION worker.release(p_subjects text[], p_jobs uuid[]) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    SELECT worker.rested(p_jobs)
$$;

CREATE OR REPLACE FUNCTION worker.end_unclaimed(p_job uuid, p_state text, p_error jsonb, p_by uuid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE worker.jobs SET state = p_state, error = p_error, superseded_by = p_by, process_id = NULL, waiting_for = NULL,
           parked = false, paused = false, finished_at = clock_timestamp()
    WHERE id = p_job;
    PERFORM worker.rested(ARRAY[p_job]);
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
            PERFORM worker.end_unclaimed(v.id, 'cancelled', worker.superseded_error(p_kind, v.steps[worker.stands_at(v) + 1]), p_job);
        END IF;
    END LOOP;
END $$;
