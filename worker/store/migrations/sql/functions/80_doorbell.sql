-- Which ready jobs nobody was rung for yet, or too long ago. The job's row is the outbox.
CREATE OR REPLACE FUNCTION worker.to_ring(p_n int, p_again_ms int) RETURNS TABLE (id uuid, kind text, queue text, lost boolean)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH due AS MATERIALIZED (
        SELECT j.id, j.rung_at IS NOT NULL AS lost FROM worker.jobs j
        WHERE j.state IN ('queued', 'waiting') AND NOT j.parked AND j.run_at <= clock_timestamp()
          AND (j.rung_at IS NULL OR j.rung_at < clock_timestamp() - make_interval(secs => p_again_ms / 1000.0))
        ORDER BY j.priority, j.run_at, j.seq LIMIT p_n FOR UPDATE SKIP LOCKED
    )
    UPDATE worker.jobs j SET rung_at = clock_timestamp() FROM due WHERE j.id = due.id RETURNING j.id, j.kind, j.queue, due.lost
$$;
