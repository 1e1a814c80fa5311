-- What the clock sweeps. Each call looks at a bounded number of rows and says where the next one goes on.

-- Each kind of which jobs rest, one index probe for each.
CREATE OR REPLACE FUNCTION worker.rested_kinds() RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE k(kind) AS (
        SELECT (SELECT j.kind FROM worker.jobs j WHERE j.state IN ('succeeded', 'failed', 'cancelled') ORDER BY j.kind LIMIT 1)
        UNION ALL
        SELECT (SELECT j.kind FROM worker.jobs j WHERE j.state IN ('succeeded', 'failed', 'cancelled') AND j.kind > k.kind
                ORDER BY j.kind LIMIT 1) FROM k WHERE k.kind IS NOT NULL
    )
    SELECT coalesce(array_agg(k.kind), '{}') FROM k WHERE k.kind IS NOT NULL
$$;

-- Forgets old jobs of a kind, with all that is theirs alone; debts and the ledger stay. Looks at `p_most` jobs behind the place
-- where the last call ended, and answers where it ended itself: NULL once there are no more.
CREATE OR REPLACE FUNCTION worker.forget_jobs(p_kind text, p_keep interval, p_keep_failed interval, p_most int,
    INOUT place timestamptz, INOUT place_id uuid, OUT jobs int, OUT steps int, OUT events int, OUT kept int)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    v_after timestamptz := coalesce(place, '-infinity');
    v_after_id uuid := coalesce(place_id, '00000000-0000-0000-0000-000000000000');
    v_keep timestamptz := clock_timestamp() - p_keep;
    v_keep_failed timestamptz := clock_timestamp() - p_keep_failed;
    v_seen int;
    v_doomed uuid[];
BEGIN
    SELECT count(*), (array_agg(w.finished_at ORDER BY w.finished_at DESC, w.id DESC))[1], (array_agg(w.id ORDER BY w.finished_at DESC, w.id DESC))[1],
           coalesce(array_agg(w.id) FILTER (WHERE w.finished_at < CASE w.state WHEN 'failed' THEN v_keep_failed ELSE v_keep END), '{}')
    INTO v_seen, place, place_id, v_doomed FROM (
        SELECT j.id, j.state, j.finished_at FROM worker.jobs j
        WHERE j.kind = p_kind AND j.state IN ('succeeded', 'failed', 'cancelled')
          AND (j.finished_at, j.id) > (v_after, v_after_id) AND j.finished_at < greatest(v_keep, v_keep_failed)
        ORDER BY j.finished_at, j.id LIMIT p_most) AS w;
    kept := cardinality(v_doomed);
    v_doomed := ARRAY(
        SELECT j.id FROM worker.jobs j WHERE j.id = ANY (v_doomed) AND j.state IN ('succeeded', 'failed', 'cancelled')
          -- What it made exists: whoever asks where that comes from finds the job.
          AND NOT EXISTS (SELECT FROM worker.ledger l WHERE l.subject = j.subject AND l.job_id = j.id AND l.state <> 'gone')
          AND NOT EXISTS (SELECT FROM worker.children c JOIN worker.jobs p ON p.id = c.parent
                          WHERE c.job_id = j.id AND p.state NOT IN ('succeeded', 'failed', 'cancelled'))
        -- Somebody may be retrying it.
        ORDER BY j.id FOR UPDATE OF j SKIP LOCKED);
    kept := kept - cardinality(v_doomed);
    DELETE FROM worker.steps s WHERE s.job_id = ANY (v_doomed);
    GET DIAGNOSTICS steps = ROW_COUNT;
    DELETE FROM worker.job_events e WHERE e.job_id = ANY (v_doomed);
    GET DIAGNOSTICS events = ROW_COUNT;
    DELETE FROM worker.children c WHERE c.parent = ANY (v_doomed);
    DELETE FROM worker.aliases a WHERE a.job_id = ANY (v_doomed);
    DELETE FROM worker.jobs j WHERE j.id = ANY (v_doomed);
    GET DIAGNOSTICS jobs = ROW_COUNT;
    IF v_seen < p_most THEN
        place := NULL;
        place_id := NULL;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION worker.forget_slots(p_keep interval, p_most int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_n int;
BEGIN
    DELETE FROM worker.slots s USING (
        SELECT o.schedule, o.slot FROM worker.slots o WHERE o.slot < clock_timestamp() - p_keep LIMIT p_most FOR UPDATE SKIP LOCKED) AS old
    WHERE s.schedule = old.schedule AND s.slot = old.slot;
    GET DIAGNOSTICS v_n = ROW_COUNT;
    RETURN v_n;
END $$;

-- How long each step of a kind took in the last 100 successes: over all, and where its facts tell, with a cache hit and without.
-- Among the last 1,000 jobs that came to rest, so that a kind which only ever fails is not looked through.
CREATE OR REPLACE FUNCTION worker.measure_durations(p_kind text) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_n int;
BEGIN
    INSERT INTO worker.durations AS d (kind, step, variant, n, p50_ms, p95_ms, measured_at)
    SELECT p_kind, r.name, r.variant, count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY r.ms),
           percentile_cont(0.95) WITHIN GROUP (ORDER BY r.ms), clock_timestamp()
    FROM (
        SELECT s.name, v.variant, extract(epoch FROM s.finished_at - s.started_at)::float8 * 1000 AS ms,
               row_number() OVER (PARTITION BY s.name, v.variant ORDER BY s.finished_at DESC) AS rank
        FROM (SELECT j.id, j.state FROM worker.jobs j WHERE j.kind = p_kind AND j.state IN ('succeeded', 'failed', 'cancelled')
              ORDER BY j.finished_at DESC LIMIT 1000) AS last
        JOIN worker.steps s ON s.job_id = last.id AND s.direction = 'forward' AND s.status = 'done'
        CROSS JOIN LATERAL (SELECT '' AS variant UNION ALL SELECT s.facts ->> 'cache' WHERE s.facts ->> 'cache' IN ('hit', 'miss')) AS v
        WHERE last.state = 'succeeded'
    ) AS r WHERE r.rank <= 100 GROUP BY r.name, r.variant
    ON CONFLICT (kind, step, variant) DO UPDATE SET n = excluded.n, p50_ms = excluded.p50_ms, p95_ms = excluded.p95_ms,
        measured_at = excluded.measured_at;
    GET DIAGNOSTICS v_n = ROW_COUNT;
    RETURN v_n;
END $$;

-- Frees jobs that are parked behind nobody: of the next `p_most` subjects behind `place` on which jobs are queued.
CREATE OR REPLACE FUNCTION worker.mend_parked(p_most int, INOUT place text, OUT healed uuid[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_keys text[];
    v uuid;
BEGIN
    WITH RECURSIVE next(key, n) AS (
        SELECT (SELECT j.subject FROM worker.jobs j WHERE j.state = 'queued' AND j.subject > coalesce(place, '') ORDER BY j.subject LIMIT 1), 1
        UNION ALL
        SELECT (SELECT j.subject FROM worker.jobs j WHERE j.state = 'queued' AND j.subject > x.key ORDER BY j.subject LIMIT 1), x.n + 1
        FROM next x WHERE x.key IS NOT NULL AND x.n < p_most
    )
    SELECT coalesce(array_agg(x.key), '{}') INTO v_keys FROM next x WHERE x.key IS NOT NULL;
    healed := ARRAY(
        SELECT h.id FROM unnest(v_keys) AS k(key) CROSS JOIN LATERAL (
            SELECT j.id FROM worker.jobs j WHERE j.subject = k.key AND j.state = 'queued' AND j.parked
            ORDER BY j.priority, j.seq LIMIT 1 FOR UPDATE SKIP LOCKED) AS h
        WHERE NOT EXISTS (SELECT FROM worker.subjects s WHERE s.key = k.key AND (s.job_id IS NOT NULL OR s.awaited))
          AND NOT EXISTS (SELECT FROM worker.jobs o WHERE o.subject = k.key AND o.state = 'queued' AND NOT o.parked));
    FOREACH v IN ARRAY healed LOOP
        UPDATE worker.jobs j SET parked = false, rung_at = NULL WHERE j.id = v;
        -- The others behind it are called in their turn.
        INSERT INTO worker.subjects AS s (key, awaited) SELECT j.subject, true FROM worker.jobs j WHERE j.id = v
            ON CONFLICT (key) DO UPDATE SET awaited = true;
        INSERT INTO worker.job_events (job_id, what, detail) VALUES (v, 'mended', '{"was": "parked behind nobody"}');
        PERFORM worker.announce(v, 'queued');
    END LOOP;
    place := CASE WHEN cardinality(v_keys) = p_most THEN v_keys[p_most] END;
END $$;

-- Frees at most `p_most` jobs that are marked as paused though no pause holds.
CREATE OR REPLACE FUNCTION worker.mend_paused(p_most int) RETURNS uuid[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_healed uuid[];
    v uuid;
BEGIN
    -- By pairs of kind and organisation, because a pause that holds may hold many jobs.
    WITH RECURSIVE pair(kind, org) AS (
        (SELECT j.kind, j.org FROM worker.jobs j WHERE j.paused ORDER BY j.kind, j.org LIMIT 1)
        UNION ALL
        SELECT n.kind, n.org FROM pair p CROSS JOIN LATERAL (
            SELECT j.kind, j.org FROM worker.jobs j WHERE j.paused AND (j.kind, j.org) > (p.kind, p.org) ORDER BY j.kind, j.org LIMIT 1) AS n
    ), free AS MATERIALIZED (
        SELECT p.kind, p.org FROM pair p WHERE NOT EXISTS (SELECT FROM worker.pauses u
            WHERE u.scope = 'all' OR (u.scope = 'kind' AND u.what = p.kind) OR (u.scope = 'org' AND u.what = p.org))
    ), healed AS (
        UPDATE worker.jobs j SET paused = false, rung_at = NULL FROM (
            SELECT i.id FROM free f JOIN worker.jobs i ON i.paused AND i.kind = f.kind AND i.org = f.org
            LIMIT p_most FOR UPDATE OF i SKIP LOCKED) AS h
        WHERE j.id = h.id RETURNING j.id
    )
    SELECT coalesce(array_agg(h.id), '{}') INTO v_healed FROM healed h;
    FOREACH v IN ARRAY v_healed LOOP
        INSERT INTO worker.job_events (job_id, what, detail) VALUES (v, 'mended', '{"was": "paused without a pause"}');
        PERFORM worker.announce(v, 'queued');
    END LOOP;
    RETURN v_healed;
END $$;

-- Gives at most `p_most` live jobs the definition that they lack, because a call of the first release stored them after all.
CREATE OR REPLACE FUNCTION worker.mend_undefined(p_most int) RETURNS uuid[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    v_healed uuid[] := ARRAY(
        SELECT j.id FROM worker.jobs j WHERE j.definition IS NULL AND j.state IN ('queued', 'running', 'waiting', 'blocked')
        ORDER BY j.id LIMIT p_most FOR NO KEY UPDATE SKIP LOCKED);
BEGIN
    PERFORM worker.define(v_healed);
    INSERT INTO worker.job_events (job_id, what, detail)
        SELECT h.id, 'mended', '{"was": "without a definition"}' FROM unnest(v_healed) AS h(id);
    RETURN v_healed;
END $$;

-- The other two things that such a call leaves. Asked by `migrate` alone, because they are over by themselves before a sweep comes
-- (a job that counts as due is claimed) or found by it as parked behind nobody; and each looks through all that is ready or parked.

-- Takes at most `p_most` jobs of later out of the ready index.
CREATE OR REPLACE FUNCTION worker.mend_early(p_most int) RETURNS uuid[]
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH healed AS (
        UPDATE worker.jobs j SET due = false FROM (
            SELECT e.id FROM worker.jobs e WHERE e.state IN ('queued', 'waiting') AND e.due AND e.run_at > clock_timestamp()
            ORDER BY e.id LIMIT p_most FOR NO KEY UPDATE SKIP LOCKED) AS early
        WHERE j.id = early.id RETURNING j.id
    )
    SELECT coalesce(array_agg(h.id), '{}') FROM healed h
$$;

-- Has at most `p_most` subjects looked at once they are free: jobs are parked behind them, and nobody said so.
CREATE OR REPLACE FUNCTION worker.mend_awaited(p_most int) RETURNS text[]
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH healed AS (
        UPDATE worker.subjects s SET awaited = true FROM (
            SELECT f.key FROM worker.subjects f
            WHERE NOT f.awaited AND f.key IN (SELECT j.subject FROM worker.jobs j WHERE j.state = 'queued' AND j.parked)
            ORDER BY f.key LIMIT p_most FOR NO KEY UPDATE SKIP LOCKED) AS forgotten
        WHERE s.key = forgotten.key RETURNING s.key
    )
    SELECT coalesce(array_agg(h.key), '{}') FROM healed h
$$;
