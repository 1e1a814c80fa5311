-- Who may be claimed now that could not be a moment ago. Level-triggered: it looks at what is true and not at what was announced,
-- so nothing can be missed; and it only takes what nobody holds, so that it never waits.
CREATE OR REPLACE FUNCTION worker.call() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_now timestamptz := clock_timestamp(); -- a variable, because an index cannot be searched for a volatile function's result
    v record;
BEGIN
    -- Whose time has come.
    UPDATE worker.jobs j SET due = true FROM (
        SELECT l.id FROM worker.jobs l WHERE l.state IN ('queued', 'waiting') AND NOT l.due AND l.run_at <= v_now
        ORDER BY l.run_at LIMIT 200 FOR UPDATE SKIP LOCKED) AS t
    WHERE j.id = t.id;
    -- Whose subject is free: the first of each queue of jobs behind it.
    FOR v IN
        SELECT s.key FROM worker.subjects s WHERE s.job_id IS NULL AND s.awaited ORDER BY s.key LIMIT 50 FOR UPDATE SKIP LOCKED
    LOOP
        PERFORM worker.unpark(v.key);
    END LOOP;
    -- Whose children have come to rest.
    FOR v IN
        SELECT DISTINCT c.parent FROM (SELECT u.parent FROM worker.children u WHERE u.state IS NOT NULL AND NOT u.told
            ORDER BY u.parent LIMIT 500) AS c
    LOOP
        PERFORM worker.tell(v.parent);
    END LOOP;
END $$;

-- The caller holds the subject's row.
CREATE OR REPLACE FUNCTION worker.unpark(p_subject text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_head uuid;
    v_id uuid;
BEGIN
    SELECT q.id INTO v_head FROM worker.jobs q WHERE q.subject = p_subject AND q.state = 'queued' AND q.parked
        ORDER BY q.priority, q.seq LIMIT 1;
    IF v_head IS NULL THEN
        UPDATE worker.subjects s SET awaited = false WHERE s.key = p_subject;
        RETURN;
    END IF;
    -- Whoever holds its row is ending it or asking for it: the next look finds out which.
    SELECT j.id INTO v_id FROM worker.jobs j WHERE j.id = v_head AND j.parked FOR UPDATE SKIP LOCKED;
    IF v_id IS NOT NULL THEN
        UPDATE worker.jobs j SET parked = false, rung_at = NULL WHERE j.id = v_id;
        PERFORM worker.announce(v_id, 'queued');
        -- The claim that parks the next one says so again.
        UPDATE worker.subjects s SET awaited = EXISTS (
            SELECT FROM worker.jobs q WHERE q.subject = p_subject AND q.state = 'queued' AND q.parked) WHERE s.key = p_subject;
    END IF;
END $$;

-- A parent is called when it has something to do: a child to start, or none left to wait for.
CREATE OR REPLACE FUNCTION worker.tell(p_parent uuid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_state text;
BEGIN
    SELECT j.state INTO v_state FROM worker.jobs j WHERE j.id = p_parent FOR NO KEY UPDATE SKIP LOCKED;
    IF v_state IS NULL AND EXISTS (SELECT FROM worker.jobs j WHERE j.id = p_parent) THEN
        RETURN; -- somebody holds its row: the next look tells it
    END IF;
    -- A row that is locked belongs to a child that somebody retries: it is told once that one ends.
    UPDATE worker.children c SET told = true FROM (
        SELECT u.position, u.number FROM worker.children u WHERE u.parent = p_parent AND u.state IS NOT NULL AND NOT u.told
        FOR NO KEY UPDATE SKIP LOCKED) AS t
    WHERE c.parent = p_parent AND c.position = t.position AND c.number = t.number;
    IF v_state IN ('waiting', 'running') AND (
        EXISTS (SELECT FROM worker.children c WHERE c.parent = p_parent AND c.state IS NULL AND c.job_id IS NULL)
        OR NOT EXISTS (SELECT FROM worker.children c WHERE c.parent = p_parent AND c.state IS NULL))
    THEN
        UPDATE worker.jobs j SET woken = true, rung_at = NULL, due = j.due OR j.state = 'waiting',
               run_at = CASE WHEN j.state = 'waiting' THEN clock_timestamp() ELSE j.run_at END
        WHERE j.id = p_parent;
        PERFORM worker.announce(p_parent, 'queued');
    END IF;
END $$;

-- Starts as many children as may live at once. The caller writes the parent's decision in the same transaction.
-- A child whose subject somebody holds in an open transaction is left to the next look, because that one may be waiting for the
-- parent, whose row is ours: 50 ms are far below the 1 s after which the server looks for deadlocks, unless somebody set it so low.
CREATE OR REPLACE FUNCTION worker.start_children(p_parent uuid, p_position int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    v record;
    v_parent worker.jobs;
    v_job record;
    v_live int;
BEGIN
    SELECT * INTO v_parent FROM worker.jobs j WHERE j.id = p_parent;
    SELECT count(*) INTO v_live FROM worker.children c
        WHERE c.parent = p_parent AND c.position = p_position AND c.state IS NULL AND c.job_id IS NOT NULL;
    FOR v IN
        SELECT c.number, c.kind, c.args, c.most FROM worker.children c
        WHERE c.parent = p_parent AND c.position = p_position AND c.state IS NULL AND c.job_id IS NULL
        ORDER BY c.number LIMIT (SELECT greatest(m.most - v_live, 0) FROM worker.children m
                                 WHERE m.parent = p_parent AND m.position = p_position LIMIT 1)
    LOOP
        -- Once, because the row says so; and without an idempotency key, which would answer a retried parent with the children of
        -- its last attempt. A job that is live already is joined, and its row is locked: it cannot end unseen.
        BEGIN
            SELECT e.job_id, e.created INTO v_job FROM worker.enqueue(v.kind, v.args, priority => v_parent.priority::int,
                requested_by => v_parent.requested_by, traceparent => v_parent.traceparent) AS e;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM worker.look_soon(p_parent);
            EXIT; -- one wait is enough for whoever waits behind us
        END;
        UPDATE worker.children c SET job_id = v_job.job_id, made = v_job.created
        WHERE c.parent = p_parent AND c.position = p_position AND c.number = v.number;
    END LOOP;
END $$;

-- The caller holds the row of a parent that could not do all that it wanted.
CREATE OR REPLACE FUNCTION worker.look_soon(p_parent uuid) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE worker.jobs SET run_at = least(run_at, clock_timestamp() + interval '1 second') WHERE id = p_parent AND state = 'waiting'
$$;

-- The parent undoes: what was not started is not. What it had made is cancelled where that is possible; but of a job that somebody
-- else asked for, or that another parent waits for as well, it lets go. What somebody holds is left to the next look, see above.
CREATE OR REPLACE FUNCTION worker.drop_children(p_parent uuid, p_position int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    v record;
BEGIN
    -- Not told yet: where none of them lives, this is what the parent is called for.
    UPDATE worker.children c SET state = 'cancelled'
        WHERE c.parent = p_parent AND c.position = p_position AND c.state IS NULL AND c.job_id IS NULL;
    FOR v IN
        SELECT c.number, c.job_id, c.made FROM worker.children c
        WHERE c.parent = p_parent AND c.position = p_position AND c.state IS NULL ORDER BY c.job_id, c.number
    LOOP
        BEGIN
            -- From here on nobody joins it, and it does not end: whoever does either holds its row.
            PERFORM FROM worker.jobs j WHERE j.id = v.job_id FOR UPDATE;
            IF v.made AND NOT worker.has_other_parent(v.job_id, p_parent) THEN
                PERFORM worker.cancel(v.job_id, 'its parent is undone', 'job ' || p_parent);
            ELSE
                -- As if it had never been started, so that neither its end nor its retry is this parent's business any more.
                UPDATE worker.children c SET state = 'cancelled', job_id = NULL
                WHERE c.parent = p_parent AND c.position = p_position AND c.number = v.number AND c.state IS NULL;
            END IF;
        EXCEPTION
            WHEN SQLSTATE 'MW003' THEN
                NULL; -- it has begun and only goes forward: the undo waits for its end
            WHEN lock_not_available THEN
                PERFORM worker.look_soon(p_parent);
                EXIT;
        END;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION worker.has_other_parent(p_job uuid, p_parent uuid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM worker.children c JOIN worker.jobs j ON j.id = c.parent
        WHERE c.job_id = p_job AND c.state IS NULL AND c.parent <> p_parent AND j.state IN ('queued', 'running', 'waiting', 'blocked'))
$$;
