-- The one writer of a job's progress: any number of decisions of one process in one statement, each checked against its fence
-- under a row lock. A decision whose job is not in the answer was fenced: its caller writes nothing more.
-- In: [{job, fence, direction, position, name, status, facts, error, attempt, took_ms, next: go|wait|block|rest,
--       to_direction, to_position, to_attempt, after_ms, what, rest, job_error, units_done, units_total,
--       spread: [{kind, args}], most, family: start|drop}]
-- Out: [{job, stop: null|superseded|cancelled, args, error, again}]; error: of a job that was asked to end, why. again: another claim
-- had better come at once, because this job waits and is due already (a call came while it ran), or somebody waited for its rest.
CREATE OR REPLACE FUNCTION worker.apply(p_decisions jsonb) RETURNS jsonb
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    v_reply jsonb;
    v_rested uuid[];
BEGIN
    WITH d AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(p_decisions) AS d(job uuid, fence bigint, direction text, "position" int, name text, status text,
            facts jsonb, error jsonb, attempt int, took_ms float8, next text, to_direction text, to_position int, to_attempt int,
            after_ms float8, what text, rest text, job_error jsonb, units_done bigint, units_total bigint)
    ), held AS MATERIALIZED (
        SELECT j.id, j.subject, j.args, j.superseded_by, j.cancel_requested_at, j.error FROM worker.jobs j JOIN d ON j.id = d.job
        -- Not a plain equation, because the planner would read the whole index of running jobs for it, dead entries and all.
        WHERE j.id = ANY (ARRAY(SELECT e.job FROM d AS e)) AND j.fence = d.fence AND coalesce(j.state = 'running', false) ORDER BY j.id FOR NO KEY UPDATE OF j
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
                -- Asked to end while it went forward, and nothing is left to undo: that is what was asked for.
                WHEN 'rest' THEN CASE WHEN j.superseded_by IS NOT NULL THEN 'cancelled'
                                      WHEN d.rest = 'failed' AND d.direction = 'forward' AND j.cancel_requested_at IS NOT NULL THEN 'cancelled'
                                      ELSE d.rest END
                -- Who was superseded, cancelled or widened meanwhile does not block: the next claim sees to it.
                WHEN 'block' THEN CASE WHEN j.woken OR j.superseded_by IS NOT NULL THEN 'waiting' ELSE 'blocked' END
                ELSE 'waiting' END,
            process_id = CASE WHEN d.next = 'go' THEN j.process_id END,
            direction = d.to_direction, position = d.to_position, attempt = d.to_attempt, waiting_for = d.what,
            error = CASE WHEN d.next = 'rest' AND j.superseded_by IS NOT NULL
                              THEN worker.superseded_error((SELECT o.kind FROM worker.jobs o WHERE o.id = j.superseded_by), d.name)
                         WHEN d.next = 'rest' AND d.rest = 'succeeded' THEN d.job_error
                         -- Who was asked to end goes back for that reason, whatever its step made of it: one that breaks off
                         -- because it was told to says so in its own row.
                         WHEN d.direction = 'forward' AND j.cancel_requested_at IS NOT NULL AND (d.next <> 'block' OR j.woken) THEN j.error
                         ELSE coalesce(d.job_error, j.error) END,
            -- Whatever was decided, this step did not kill its process.
            crashes = 0, rung_at = NULL, woken = false, units_done = d.units_done, units_total = d.units_total,
            due = CASE WHEN d.next = 'wait' THEN j.woken OR j.superseded_by IS NOT NULL OR d.after_ms <= 0 ELSE true END,
            run_at = CASE WHEN d.next NOT IN ('wait', 'block') THEN j.run_at
                          -- Not by the request for a cancel itself, which stays with the job while it undoes and backs off.
                          WHEN j.woken OR j.superseded_by IS NOT NULL THEN clock_timestamp()
                          WHEN d.next = 'block' THEN j.run_at
                          ELSE clock_timestamp() + make_interval(secs => d.after_ms / 1000) END,
            finished_at = CASE WHEN d.next = 'rest' THEN clock_timestamp() END
        FROM d JOIN held h ON h.id = d.job
        WHERE j.id = ANY (ARRAY(SELECT g.id FROM held g)) AND j.id = h.id AND (d.next <> 'go' OR d.to_direction <> j.direction)
        -- Whoever waits for this rest is called by the next claim: it had better come at once.
        RETURNING j.id, d.next, CASE d.next WHEN 'wait' THEN j.due WHEN 'rest' THEN
            -- Scalar, because an EXISTS may be answered by hashing all subjects there ever were.
            coalesce((SELECT s.awaited FROM worker.subjects s WHERE s.key = j.subject LIMIT 1), false)
            OR EXISTS (SELECT FROM worker.children c WHERE c.job_id = j.id) ELSE false END AS again
    )
    SELECT (SELECT jsonb_agg(jsonb_build_object('job', h.id, 'args', h.args, 'stop',
                CASE WHEN h.superseded_by IS NOT NULL THEN 'superseded' WHEN h.cancel_requested_at IS NOT NULL THEN 'cancelled' END,
                'error', CASE WHEN h.cancel_requested_at IS NOT NULL THEN h.error END, 'again', coalesce(m.again, false))) FROM held h LEFT JOIN moved m ON m.id = h.id),
           (SELECT array_agg(m.id) FROM moved m WHERE m.next = 'rest')
    INTO v_reply, v_rested;
    IF v_rested IS NOT NULL THEN
        PERFORM worker.rested(v_rested);
    END IF;
    IF p_decisions @? '$[*] ? (@.family != null)' THEN
        PERFORM worker.apply_family(d.job, d."position", d.spread, d.most, d.family)
        FROM jsonb_to_recordset(p_decisions) AS d(job uuid, "position" int, spread jsonb, most int, family text)
        WHERE d.family IS NOT NULL AND v_reply @> jsonb_build_array(jsonb_build_object('job', d.job));
    END IF;
    RETURN coalesce(v_reply, '[]');
END $$;

CREATE OR REPLACE FUNCTION worker.apply_family(p_job uuid, p_position int, p_spread jsonb, p_most int, p_family text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO worker.children (parent, position, number, kind, args, most)
    SELECT p_job, p_position, c.number, c.child ->> 'kind', c.child -> 'args', p_most
    FROM jsonb_array_elements(p_spread) WITH ORDINALITY AS c(child, number) ON CONFLICT DO NOTHING;
    IF p_family = 'start' THEN
        PERFORM worker.start_children(p_job, p_position);
    ELSE
        PERFORM worker.drop_children(p_job, p_position);
    END IF;
END $$;
