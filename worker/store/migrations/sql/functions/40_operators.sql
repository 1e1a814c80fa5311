-- What people ask for.

CREATE OR REPLACE FUNCTION worker.cancel(job_id uuid, reason text, requested_by text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v worker.jobs;
    v_error jsonb;
BEGIN
    -- It is all that whoever finds the job cancelled will learn.
    IF coalesce(cancel.reason, '') !~ '\S' THEN
        RAISE EXCEPTION 'cancel job %: a reason is needed', cancel.job_id USING ERRCODE = '22023',
            HINT = 'a cancel cannot be taken back; say why';
    END IF;
    SELECT * INTO v FROM worker.jobs j WHERE j.id = cancel.job_id FOR UPDATE;
    IF NOT FOUND OR v.state IN ('succeeded', 'failed', 'cancelled') THEN
        RETURN false;
    END IF;
    IF v.only_forward AND v.started_at IS NOT NULL THEN
        RAISE EXCEPTION 'cancel job %: a % that has begun only goes forward', v.id, v.kind USING ERRCODE = 'MW003';
    END IF;
    INSERT INTO worker.job_events (job_id, what, actor, detail)
        VALUES (v.id, 'cancel_requested', cancel.requested_by, jsonb_build_object('reason', left(cancel.reason, 500)));
    v_error := jsonb_build_object('code', 'cancelled', 'message', 'cancelled: ' || left(cancel.reason, 500),
        'hint', '', 'blame', 'operator', 'step', v.steps[worker.stands_at(v) + 1]);
    IF v.started_at IS NULL THEN
        PERFORM worker.end_unclaimed(v.id, 'cancelled', v_error, NULL);
    ELSE
        UPDATE worker.jobs SET cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp()), woken = true,
               -- A job that undoes already still says why.
               error = CASE WHEN direction = 'back' THEN error ELSE v_error END,
               state = CASE WHEN state = 'blocked' THEN 'waiting' ELSE state END, rung_at = NULL,
               run_at = CASE WHEN state IN ('waiting', 'blocked') THEN clock_timestamp() ELSE run_at END,
               due = due OR state IN ('waiting', 'blocked')
        WHERE id = v.id;
        PERFORM worker.announce(v.id, 'queued');
    END IF;
    RETURN true;
END $$;

-- What jobs of the first release lack: the definition of their own steps, which were frozen at their enqueue and may be another list than
-- their kind's by now. Without one they would be offered to processes that know none of their steps. The caller holds their rows.
CREATE OR REPLACE FUNCTION worker.define(p_jobs uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    INSERT INTO worker.definitions (kind, steps, first)
        SELECT DISTINCT j.kind, j.steps, true FROM worker.jobs j WHERE j.id = ANY (p_jobs) AND j.definition IS NULL
            AND NOT EXISTS (SELECT FROM worker.definitions d WHERE d.kind = j.kind AND d.steps = j.steps)
        ON CONFLICT DO NOTHING;
    UPDATE worker.jobs j SET definition = (SELECT d.id FROM worker.definitions d WHERE d.kind = j.kind AND d.steps = j.steps),
           supersedes = coalesce((SELECT k.supersedes FROM worker.kinds k WHERE k.kind = j.kind), false)
        WHERE j.id = ANY (p_jobs) AND j.definition IS NULL;
END $$;

-- Has a job stand at a step again that it has passed, or at its own: what is written of the steps from there on is forgotten, because a
-- job stands beyond all that was passed, and effects are safe to repeat. What they owed is taken back. The caller holds the job's row.
CREATE OR REPLACE FUNCTION worker.step_back(p_job worker.jobs, p_step text, p_by text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_at int := worker.stands_at(p_job);
    v_to int := array_position(p_job.steps, p_step) - 1;
BEGIN
    IF v_to IS DISTINCT FROM v_at AND NOT EXISTS (SELECT FROM worker.steps s WHERE s.job_id = p_job.id AND s.direction = p_job.direction
            AND s.position = v_to AND s.status IN ('done', 'skipped')) THEN
        RAISE EXCEPTION 'retry job %: it has not come past %', p_job.id, to_json(left(p_step, 60)) USING ERRCODE = 'MW004',
            HINT = 'it stands at ' || p_job.steps[v_at + 1] || coalesce(' and has passed ' || (
                SELECT string_agg(s.name, ', ' ORDER BY abs(s.position - v_at) DESC) FROM worker.steps s
                WHERE s.job_id = p_job.id AND s.direction = p_job.direction AND s.status IN ('done', 'skipped')), '');
    END IF;
    IF v_to <> v_at AND p_job.direction = 'forward' AND NOT p_job.only_forward THEN
        -- If it failed at an earlier step, it would undo from there up, and what later ones had made would be left behind.
        RAISE EXCEPTION 'retry job %: what was done after % can only be undone from where it stands', p_job.id, p_step
            USING ERRCODE = 'MW004', HINT = 'cancel it: it undoes all of it, newest first; then ask for it anew';
    END IF;
    DELETE FROM worker.steps s WHERE s.job_id = p_job.id AND s.direction = p_job.direction
        AND CASE p_job.direction WHEN 'forward' THEN s.position >= v_to ELSE s.position <= v_to END;
    UPDATE worker.debts d SET settled_at = clock_timestamp(), settled_by = left(p_by, 200)
        WHERE d.job_id = p_job.id AND d.direction = p_job.direction AND d.settled_at IS NULL
          AND CASE p_job.direction WHEN 'forward' THEN array_position(p_job.steps, d.step) > v_to
                   ELSE array_position(p_job.steps, d.step) <= v_to + 1 END;
    IF p_job.direction = 'forward' THEN
        -- A step whose children all rest spreads anew; one that was skipped while they lived goes on with them.
        DELETE FROM worker.children c WHERE c.parent = p_job.id AND c.position >= v_to
            AND NOT EXISTS (SELECT FROM worker.children o WHERE o.parent = c.parent AND o.position = c.position AND o.state IS NULL);
    END IF;
    UPDATE worker.jobs SET position = v_to, units_done = NULL, units_total = NULL WHERE id = p_job.id;
END $$;

-- `from_step`: a blocked or waiting job that only goes forward, or undoes, goes on there.
CREATE OR REPLACE FUNCTION worker.retry(job_id uuid, requested_by text DEFAULT NULL, from_step text DEFAULT NULL) RETURNS boolean
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
    IF v.state = 'failed' AND retry.from_step IS NOT NULL THEN
        RAISE EXCEPTION 'retry job %: it was undone, so it begins at its first step', v.id USING ERRCODE = 'MW004',
            HINT = 'retry it without naming a step';
    END IF;
    IF v.state = 'failed' THEN
        -- It was undone, so nothing of it is left to build on: from the first step.
        DELETE FROM worker.steps s WHERE s.job_id = v.id;
        DELETE FROM worker.children c WHERE c.parent = v.id;
        -- An undo that was skipped stays owed: what it would have undone may be there.
        UPDATE worker.debts d SET settled_at = clock_timestamp(), settled_by = left(retry.requested_by, 200)
            WHERE d.job_id = v.id AND d.direction = 'forward' AND d.settled_at IS NULL;
        BEGIN
            UPDATE worker.jobs SET state = 'queued', direction = 'forward', position = 0, started_at = NULL, finished_at = NULL, parked = false,
                   cancel_requested_at = NULL, superseded_by = NULL, units_done = NULL, units_total = NULL WHERE id = v.id;
        EXCEPTION WHEN unique_violation THEN
            RAISE EXCEPTION 'retry job %: another % on % is live', v.id, v.kind, v.subject USING ERRCODE = 'MW001',
                HINT = 'that one does the same; wait for it, or cancel it first';
        END;
        UPDATE worker.children c SET state = NULL, told = false WHERE c.job_id = v.id;
    ELSE
        DELETE FROM worker.steps s WHERE s.job_id = v.id AND s.status = 'waiting';
        UPDATE worker.jobs SET state = 'waiting' WHERE id = v.id;
        IF retry.from_step IS NOT NULL THEN
            PERFORM worker.step_back(v, retry.from_step, retry.requested_by);
        END IF;
    END IF;
    UPDATE worker.jobs SET attempt = 0, crashes = 0, waiting_for = NULL, rung_at = NULL,
           -- A job that undoes because it was cancelled stays cancelled, and still says why.
           cancel_requested_at = CASE WHEN direction = 'back' THEN cancel_requested_at END,
           error = CASE WHEN direction = 'back' THEN coalesce(error -> 'undoing', error) END,
           run_at = clock_timestamp(), due = true WHERE id = v.id;
    IF v.definition IS NULL THEN
        PERFORM worker.define(ARRAY[v.id]); -- the migration left alone what was at rest
    END IF;
    INSERT INTO worker.job_events (job_id, what, actor, detail) VALUES (v.id, 'retried', retry.requested_by,
        CASE WHEN retry.from_step IS NULL THEN v.error ELSE jsonb_build_object('from', retry.from_step, 'error', v.error) END);
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
        UPDATE worker.jobs j SET woken = true, rung_at = NULL, due = j.due OR j.state = 'waiting',
               run_at = CASE WHEN j.state = 'waiting' THEN clock_timestamp() ELSE j.run_at END
        WHERE j.subject = wake.subject AND j.state IN ('waiting', 'running') RETURNING j.id
    LOOP
        PERFORM worker.announce(v, 'queued');
    END LOOP;
END $$;

-- A step that cannot be done and must not hold everything up: marked here, passed by whoever claims the job next, and owed from now on.
CREATE OR REPLACE FUNCTION worker.skip(job_id uuid, step text, reason text, requested_by text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v worker.jobs;
    v_at int;
BEGIN
    SELECT * INTO v FROM worker.jobs j WHERE j.id = skip.job_id FOR UPDATE;
    IF NOT FOUND OR v.state NOT IN ('blocked', 'waiting') THEN
        RAISE EXCEPTION 'skip step of job %: %', skip.job_id, coalesce('it is ' || v.state, 'no such job') USING ERRCODE = 'MW005',
            HINT = 'a step is skipped while its job is blocked or waits';
    END IF;
    v_at := worker.stands_at(v);
    IF v.steps[v_at + 1] IS DISTINCT FROM skip.step THEN
        RAISE EXCEPTION 'skip step of job %: it is at %, not at %', v.id, v.steps[v_at + 1], to_json(left(skip.step, 60))
            USING ERRCODE = 'MW005', HINT = 'only the step at which a job stands can be skipped';
    END IF;
    IF length(trim(coalesce(skip.reason, ''))) NOT BETWEEN 1 AND 500 THEN
        RAISE EXCEPTION 'skip step of job %: a reason of 1 to 500 characters is needed', v.id USING ERRCODE = '22023';
    END IF;
    IF v.direction = 'forward' AND NOT EXISTS (SELECT FROM worker.kinds k WHERE k.kind = v.kind AND skip.step = ANY (k.skippable)) THEN
        RAISE EXCEPTION 'skip step of job %: what follows needs what % does', v.id, skip.step USING ERRCODE = 'MW005',
            HINT = 'steps that may be skipped: ' || coalesce((SELECT nullif(array_to_string(k.skippable, ', '), '')
                FROM worker.kinds k WHERE k.kind = v.kind), 'none') || '; an undo may always be';
    END IF;
    INSERT INTO worker.steps AS s (job_id, direction, position, name, status, attempt, fence, facts, error, started_at, finished_at)
    VALUES (v.id, v.direction, v_at, skip.step, 'skipped', v.attempt, coalesce(v.fence, 0), '{}', v.error,
            clock_timestamp(), clock_timestamp())
    ON CONFLICT ON CONSTRAINT steps_pkey DO UPDATE SET status = 'skipped', finished_at = excluded.finished_at, error = excluded.error
        WHERE s.status NOT IN ('done', 'skipped');
    IF NOT FOUND THEN
        RAISE EXCEPTION 'skip step of job %: % is passed already', v.id, skip.step USING ERRCODE = 'MW005';
    END IF;
    INSERT INTO worker.debts (job_id, subject, direction, step, reason, requested_by)
    VALUES (v.id, v.subject, v.direction, skip.step, skip.reason, skip.requested_by);
    INSERT INTO worker.job_events (job_id, what, actor, detail)
    VALUES (v.id, 'skipped', skip.requested_by, jsonb_build_object('step', skip.step, 'reason', skip.reason, 'error', v.error));
    UPDATE worker.jobs SET state = 'waiting', attempt = 0, crashes = 0, waiting_for = NULL, rung_at = NULL, run_at = clock_timestamp(),
           due = true, error = CASE WHEN direction = 'back' OR cancel_requested_at IS NOT NULL THEN coalesce(error -> 'undoing', error) END
           WHERE id = v.id;
    PERFORM worker.announce(v.id, 'queued');
    RETURN true;
END $$;

-- Nothing of that kind, that organisation, or at all is claimed; what runs goes on to its next wait. A host (a node: where worker processes run) is drained: its
-- processes give their jobs back at the next boundary. Answers whether it was not so already.
CREATE OR REPLACE FUNCTION worker.pause(scope text, what text, reason text DEFAULT NULL, requested_by text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF coalesce(pause.scope NOT IN ('kind', 'org', 'host', 'all'), true) OR coalesce((pause.scope = 'all') <> (pause.what = ''), true) THEN
        RAISE EXCEPTION 'pause: kind, org and host want a name, all wants none' USING ERRCODE = '22023';
    END IF;
    IF pause.scope = 'kind' AND NOT EXISTS (SELECT FROM worker.kinds k WHERE k.kind = pause.what) THEN
        RAISE EXCEPTION 'pause: unknown kind %', to_json(left(pause.what, 60)) USING ERRCODE = '22023',
            HINT = 'known kinds: ' || coalesce((SELECT string_agg(k.kind, ', ' ORDER BY k.kind) FROM worker.kinds k), 'none');
    END IF;
    IF length(pause.what) > 200 OR length(pause.reason) > 500 THEN
        RAISE EXCEPTION 'pause: a name holds at most 200 characters, a reason at most 500' USING ERRCODE = '22023', HINT = 'shorten it';
    END IF;
    INSERT INTO worker.pauses (scope, what, reason, requested_by)
    VALUES (pause.scope, pause.what, pause.reason, left(pause.requested_by, 200)) ON CONFLICT DO NOTHING;
    RETURN FOUND;
END $$;

-- Ends a pause; answers how many jobs are free again, NULL where there was none.
CREATE OR REPLACE FUNCTION worker.resume(scope text, what text, requested_by text DEFAULT NULL) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_freed uuid[];
BEGIN
    -- One at a time: two that each still saw the other's pause would leave what both of them held.
    LOCK TABLE worker.pauses IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM worker.pauses p WHERE p.scope = resume.scope AND p.what = resume.what;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    WITH freed AS (
        UPDATE worker.jobs j SET paused = false, rung_at = NULL FROM (
            SELECT l.id FROM worker.jobs l WHERE l.paused AND NOT EXISTS (SELECT FROM worker.pauses p
                WHERE p.scope = 'all' OR (p.scope = 'kind' AND p.what = l.kind) OR (p.scope = 'org' AND p.what = l.org))
            ORDER BY l.subject COLLATE "C", l.id FOR NO KEY UPDATE) AS held
        WHERE j.id = held.id RETURNING j.id
    )
    SELECT coalesce(array_agg(f.id), '{}') INTO v_freed FROM freed f;
    IF cardinality(v_freed) > 0 THEN
        PERFORM worker.announce(v_freed[1], 'queued'); -- one wakes the relay, which finds the others
    END IF;
    RETURN cardinality(v_freed);
END $$;
