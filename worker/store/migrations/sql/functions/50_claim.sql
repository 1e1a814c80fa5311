-- How a process takes jobs.

CREATE OR REPLACE FUNCTION worker.claim(p_process int, p_queues text[], p_n int, p_ids uuid[] DEFAULT NULL)
RETURNS TABLE (id uuid, kind text, subject text, args jsonb, steps text[], only_forward boolean, direction text, position_ int,
               attempt int, fence bigint, claims int, stop text, error jsonb, requested_by text, traceparent text, past jsonb,
               waited_ms float8, age_ms float8)
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
                   FROM worker.steps s WHERE s.job_id = j.id) END,
               extract(epoch FROM clock_timestamp() - j.run_at)::float8 * 1000, extract(epoch FROM clock_timestamp() - j.created_at)::float8 * 1000
        FROM worker.jobs j WHERE j.id = ANY (v_taken) ORDER BY j.priority, j.run_at, j.seq;
END $$;
