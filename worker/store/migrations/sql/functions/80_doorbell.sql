-- Which ready jobs nobody was rung for yet, or too long ago. The job's row is the outbox.
CREATE OR REPLACE FUNCTION worker.to_ring(p_n int, p_again_ms int) RETURNS TABLE (id uuid, kind text, queue text, lost boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_before timestamptz := clock_timestamp() - make_interval(secs => p_again_ms / 1000.0);
BEGIN
    PERFORM worker.call();
    RETURN QUERY
        WITH never AS MATERIALIZED (
            SELECT j.id FROM worker.jobs j
            WHERE j.state IN ('queued', 'waiting') AND j.due AND NOT j.parked AND NOT j.paused AND j.rung_at IS NULL
            LIMIT p_n FOR UPDATE SKIP LOCKED
        ), again AS MATERIALIZED (
            SELECT j.id FROM worker.jobs j
            WHERE j.state IN ('queued', 'waiting') AND j.due AND NOT j.parked AND NOT j.paused AND j.rung_at < v_before
            ORDER BY j.rung_at LIMIT p_n - (SELECT count(*) FROM never) FOR UPDATE SKIP LOCKED
        ), first AS (
            SELECT n.id, false AS lost FROM never n UNION ALL SELECT a.id, true FROM again a
        )
        UPDATE worker.jobs j SET rung_at = clock_timestamp() FROM first f WHERE j.id = f.id RETURNING j.id, j.kind, j.queue, f.lost;
END $$;
