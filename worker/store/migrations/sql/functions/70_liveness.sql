-- Who lives, and what becomes of the work of the dead.

-- A process takes up its identity and says what its release knows: kinds with the names of their steps. Jobs that waited for
-- a release that knows their steps go on.
CREATE OR REPLACE FUNCTION worker.enter(p_name text, p_pid int, p_host text, p_lease_ms int, p_knows jsonb) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_able int[] := ARRAY(SELECT d.id FROM worker.definitions d
        WHERE d.steps <@ ARRAY(SELECT jsonb_array_elements_text(p_knows -> d.kind)) ORDER BY d.id);
    v_id int;
BEGIN
    INSERT INTO worker.processes (name, pid, host, able, lease_until)
    VALUES (p_name, p_pid, p_host, v_able, clock_timestamp() + make_interval(secs => p_lease_ms / 1000.0)) RETURNING id INTO v_id;
    PERFORM worker.free_known(v_able);
    RETURN v_id;
END $$;

-- Jobs that an older release blocked, because it did not know their steps, go on. Asked at every beat, because an older process may
-- block one after the newer one has entered. What somebody holds is freed at the next.
CREATE OR REPLACE FUNCTION worker.free_known(p_able int[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
BEGIN
    UPDATE worker.jobs j SET state = 'waiting', waiting_for = NULL, run_at = clock_timestamp(), due = true, rung_at = NULL,
           error = j.error -> 'undoing' -- why it undoes, where it does
    FROM (SELECT b.id FROM worker.jobs b WHERE b.state = 'blocked' AND b.error ->> 'code' = 'unknown_step' AND b.definition = ANY (p_able)
          ORDER BY b.id LIMIT 500 FOR UPDATE SKIP LOCKED) AS known
    WHERE j.id = known.id;
END $$;

CREATE OR REPLACE FUNCTION worker.beat(p_process int, p_lease_ms int, OUT alive boolean, OUT stop uuid[], OUT draining boolean, OUT running uuid[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_host text;
    v_able int[];
BEGIN
    -- A lease that is over is never revived: whoever took the work over must be able to rely on that.
    UPDATE worker.processes p SET lease_until = clock_timestamp() + make_interval(secs => p_lease_ms / 1000.0)
        WHERE p.id = p_process AND p.lease_until > clock_timestamp() RETURNING p.host, p.able INTO v_host, v_able;
    alive := FOUND;
    PERFORM worker.free_known(v_able);
    SELECT coalesce(array_agg(j.id) FILTER (WHERE j.superseded_by IS NOT NULL OR j.cancel_requested_at IS NOT NULL), '{}'),
           coalesce(array_agg(j.id), '{}')
    INTO stop, running FROM worker.jobs j WHERE j.process_id = p_process AND j.state = 'running';
    draining := EXISTS (SELECT FROM worker.pauses p WHERE p.scope = 'host' AND p.what = v_host);
END $$;

-- Takes work back from processes whose lease ended or whose session lock is free (their process died).
CREATE OR REPLACE FUNCTION worker.reap(p_namespace int, p_max_crashes int) RETURNS TABLE (job_id uuid, by_lease boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v record;
    v_blameless boolean;
    v_crashes int;
    v_hopeless boolean;
    v_pause_s int;
BEGIN
    FOR v IN
        WITH dead AS MATERIALIZED (
            SELECT p.id, p.lease_until < clock_timestamp() AS by_lease FROM worker.processes p
            WHERE p.lease_until < clock_timestamp()
               -- On another server than the one where it entered (restarted, promoted) every session lock is free and means nothing:
               -- only the lease counts. NULL, too: of the first release, and nobody knows on which server it began.
               OR (p.server_started_at = pg_postmaster_start_time() AND NOT EXISTS (
                       SELECT FROM pg_locks l JOIN pg_database b ON b.oid = l.database AND b.datname = current_database()
                       WHERE l.locktype = 'advisory' AND l.classid = p_namespace::oid AND l.objid = p.id::oid AND l.granted))
        )
        SELECT j.id, j.subject, j.crashes, j.fence, j AS job, d.by_lease, d.id AS process,
               NOT j.woken AND j.superseded_by IS NULL AS may_block
        FROM worker.jobs j JOIN dead d ON j.process_id = d.id
        -- By subject, because the loop locks those in this order and claims do, too; the jobs themselves are never waited for.
        WHERE j.state = 'running' ORDER BY j.subject LIMIT 500 FOR UPDATE OF j SKIP LOCKED
    LOOP
        -- Whoever left in doubt or lost its server (restarted, promoted) did not die of a step. Read here and not with the dead, because
        -- it may have said so just after that look began, and just before its session ended.
        v_blameless := EXISTS (SELECT FROM worker.processes p WHERE p.id = v.process
            AND (p.in_doubt OR p.server_started_at IS DISTINCT FROM pg_postmaster_start_time()));
        -- Counted for one step: what this claim has written since shows that an earlier one did not kill its process.
        v_crashes := CASE WHEN EXISTS (SELECT FROM worker.steps s WHERE s.job_id = v.id AND s.fence = v.fence) THEN 0 ELSE v.crashes END
                     + CASE WHEN v_blameless THEN 0 ELSE 1 END;
        v_hopeless := v_crashes >= p_max_crashes AND v.may_block AND NOT v_blameless;
        v_pause_s := CASE WHEN v_blameless THEN 0 ELSE least(v_crashes - 1, 6) END;
        -- The fence moves now and not at the next claim, so that a zombie is refused from this moment on.
        UPDATE worker.subjects s SET fence = s.fence + 1 WHERE s.key = v.subject AND s.job_id = v.id;
        UPDATE worker.jobs j SET fence = s.fence, process_id = NULL, crashes = v_crashes, rung_at = NULL,
               run_at = clock_timestamp() + v_pause_s * interval '1 second', due = v_pause_s = 0 OR v_hopeless,
               state = CASE WHEN v_hopeless THEN 'blocked' ELSE 'waiting' END,
               waiting_for = CASE WHEN v_hopeless THEN 'the step kills its process again and again' END,
               error = CASE WHEN v_hopeless THEN jsonb_build_object('code', 'crash_loop', 'hint', 'read the worker''s log, then retry the job',
                   'message', 'the process died ' || v_crashes || ' times during this step',
                   'blame', 'internal', 'step', (v.job).steps[worker.stands_at(v.job) + 1])
                   -- An undo must not forget why it undoes.
                   || CASE WHEN j.direction = 'back' THEN jsonb_build_object('undoing', j.error) ELSE '{}' END ELSE j.error END
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
