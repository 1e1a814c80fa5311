-- The clock: each time that a schedule comes round is one row, and whoever inserts it does it. Only this database's clock counts.

-- Out: the slot, NULL where somebody else was first; seconds until the next one.
CREATE OR REPLACE FUNCTION worker.take_slot(p_schedule text, p_every_ms bigint, OUT taken timestamptz, OUT next_s float8)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_now timestamptz := clock_timestamp();
    v_every numeric := p_every_ms / 1000.0;
    v_number numeric := floor(extract(epoch FROM v_now) / v_every);
BEGIN
    -- The current slot only: what nobody took while no clock ran is not made up, because each sweep looks at all there is.
    INSERT INTO worker.slots (schedule, slot) VALUES (p_schedule, to_timestamp((v_number * v_every)::float8))
        ON CONFLICT DO NOTHING RETURNING slot INTO taken;
    next_s := (v_number + 1) * v_every - extract(epoch FROM v_now);
END $$;

CREATE OR REPLACE FUNCTION worker.end_slot(p_schedule text, p_slot timestamptz, p_outcome jsonb, p_job uuid DEFAULT NULL) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    UPDATE worker.slots s SET finished_at = clock_timestamp(), outcome = p_outcome, job_id = p_job
        WHERE s.schedule = p_schedule AND s.slot = p_slot
$$;
