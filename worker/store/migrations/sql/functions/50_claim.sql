-- How a process takes jobs. The plans are held to index probes, because a plan that was made while a table was small is kept for
-- as long as a connection lives, and would look through all of it later. Settings alone do not hold them: a join or a hashed
-- NOT EXISTS reads a whole index just as well. An array, a LATERAL with a row lock and a scalar subquery leave no choice.

-- The heads of the ready jobs, in fair turns: organisations one after the other from the one that was served last, by priority
-- within each. One index probe for each turn, so neither an organisation's backlog nor the number of organisations is looked through.
CREATE OR REPLACE FUNCTION worker.in_turn(p_process int, p_queues text[], p_n int, p_after text, p_able int[]) RETURNS uuid[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
BEGIN
    RETURN (WITH turns AS MATERIALIZED (
        SELECT q.queue, o.org, row_number() OVER (ORDER BY o.lap, o.org, q.queue) AS turn, count(*) OVER () AS n
        FROM unnest(p_queues) AS q(queue), LATERAL (
            WITH RECURSIVE beyond(org, n) AS (
                SELECT (SELECT j.org FROM worker.jobs j WHERE j.queue = q.queue AND j.org > p_after AND j.state IN ('queued', 'waiting')
                        AND j.due AND NOT j.parked AND NOT j.paused ORDER BY j.org LIMIT 1), 1
                UNION ALL
                SELECT (SELECT j.org FROM worker.jobs j WHERE j.queue = q.queue AND j.org > b.org AND j.state IN ('queued', 'waiting')
                        AND j.due AND NOT j.parked AND NOT j.paused ORDER BY j.org LIMIT 1), b.n + 1
                FROM beyond b WHERE b.org IS NOT NULL AND b.n < p_n
            ), again(org, n) AS (
                SELECT (SELECT j.org FROM worker.jobs j WHERE j.queue = q.queue AND j.org <= p_after AND j.state IN ('queued', 'waiting')
                        AND j.due AND NOT j.parked AND NOT j.paused ORDER BY j.org LIMIT 1), 1
                UNION ALL
                SELECT (SELECT j.org FROM worker.jobs j WHERE j.queue = q.queue AND j.org > a.org AND j.org <= p_after
                        AND j.state IN ('queued', 'waiting') AND j.due AND NOT j.parked AND NOT j.paused ORDER BY j.org LIMIT 1), a.n + 1
                FROM again a WHERE a.org IS NOT NULL AND a.n < p_n
            )
            SELECT 0 AS lap, b.org FROM beyond b WHERE b.org IS NOT NULL
            UNION ALL SELECT 1, a.org FROM again a WHERE a.org IS NOT NULL
        ) AS o ORDER BY turn LIMIT p_n
    ), found AS MATERIALIZED (
        SELECT h.id, h.crashes, h.rank, t.turn FROM turns t, LATERAL (
            SELECT l.id, l.crashes, row_number() OVER () AS rank FROM (
                SELECT j.id, j.crashes FROM worker.jobs j
                WHERE j.queue = t.queue AND j.org = t.org AND j.state IN ('queued', 'waiting') AND j.due AND NOT j.parked AND NOT j.paused
                  -- A job whose step has seen three processes die is a suspect, and no process holds two: otherwise one bad job
                  -- takes its neighbours along each time, and all of them end blocked for what it did.
                  AND (j.crashes < 3 OR NOT EXISTS (
                      SELECT FROM worker.jobs r WHERE r.process_id = p_process AND r.state = 'running' AND r.crashes >= 3))
                  AND (j.definition IS NULL OR j.definition = ANY (p_able))
                ORDER BY j.priority, j.seq LIMIT (p_n + t.n - 1) / t.n FOR UPDATE OF j SKIP LOCKED) AS l) AS h
    )
    SELECT array_agg(f.id ORDER BY f.rank, f.turn) FROM (
        SELECT * FROM found WHERE crashes < 3
        UNION ALL (SELECT * FROM found WHERE crashes >= 3 ORDER BY rank, turn LIMIT 1) ORDER BY rank, turn LIMIT p_n) AS f);
END $$;

-- The definitions of which this process takes jobs, asked once for each claim. A job that it cannot do is left to those who can;
-- where nobody can, it is taken: to be blocked with the reason. A process that never said is of the release that knew the first ones.
CREATE OR REPLACE FUNCTION worker.takes(p_process int, p_able int[]) RETURNS int[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_others int[]; -- what the others are able to do
    v_silent boolean; -- one of them never said
BEGIN
    -- A process of the newest release is able to do all that is wanted: no other is asked.
    IF NOT EXISTS (SELECT FROM worker.definitions d WHERE (d.id = ANY (p_able)) IS NOT TRUE) THEN
        RETURN p_able;
    END IF;
    SELECT array_agg(DISTINCT a.id), bool_or(p.able IS NULL) INTO v_others, v_silent
        FROM worker.processes p LEFT JOIN LATERAL unnest(p.able) AS a(id) ON true
        WHERE p.id <> p_process AND p.lease_until > clock_timestamp();
    RETURN ARRAY(SELECT d.id FROM worker.definitions d
        WHERE coalesce(d.id = ANY (p_able), d.first)
           OR NOT (coalesce(d.id = ANY (v_others), false) OR (d.first AND coalesce(v_silent, false))));
END $$;

-- Those of `p_found` whose pause holds leave the ready index; the others are answered.
CREATE OR REPLACE FUNCTION worker.not_paused(p_found uuid[]) RETURNS uuid[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_paused uuid[];
BEGIN
    -- A pause that is being lifted is locked and counts no more; one that is shared here cannot be lifted before we commit,
    -- so whoever lifts it sees what is marked here.
    WITH pauses AS MATERIALIZED (
        SELECT p.scope, p.what FROM worker.pauses p WHERE p.scope <> 'host' FOR SHARE SKIP LOCKED
    ), held AS (
        UPDATE worker.jobs j SET paused = true, rung_at = NULL
        WHERE j.id = ANY (p_found) AND EXISTS (SELECT FROM pauses p
            WHERE p.scope = 'all' OR (p.scope = 'kind' AND p.what = j.kind) OR (p.scope = 'org' AND p.what = j.org))
        RETURNING j.id
    )
    SELECT coalesce(array_agg(h.id), '{}') INTO v_paused FROM held h;
    RETURN ARRAY(SELECT f.id FROM unnest(p_found) WITH ORDINALITY AS f(id, n) WHERE NOT f.id = ANY (v_paused) ORDER BY f.n);
END $$;

-- Takes the subjects of at most `p_most` of the jobs `p_found`, whose rows the caller has locked. Out: what was taken, and whether anything became of the others
-- (parked, or the way is made free), so that another look finds other jobs.
CREATE OR REPLACE FUNCTION worker.take(p_process int, p_found uuid[], p_most int, OUT taken uuid[], OUT moved boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET jit = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    v_held text[];
    v_parked int := 0;
    v record;
BEGIN
    -- A subject's row that somebody has locked is skipped and never waited for. The fence grows with every claim.
    WITH head AS MATERIALIZED (
        SELECT DISTINCT ON (j.subject) j.subject, j.id FROM worker.jobs j WHERE j.id = ANY (p_found)
          -- Somebody may have the row of an older one locked for a moment: it was skipped above, and must not be overtaken.
          AND (j.state = 'waiting' OR NOT EXISTS (
              SELECT FROM worker.jobs o WHERE o.subject = j.subject AND o.state = 'queued' AND NOT o.parked AND NOT o.paused
                AND o.due AND (o.priority, o.seq) < (j.priority, j.seq)))
        ORDER BY j.subject, (j.state = 'waiting') DESC, j.priority, j.seq
    ), there AS MATERIALIZED (
        SELECT s.key, s.job_id, h.id FROM head h, LATERAL (
            SELECT k.key, k.job_id FROM worker.subjects k WHERE k.key = h.subject FOR NO KEY UPDATE SKIP LOCKED) AS s
    ), free AS MATERIALIZED (
        SELECT h.subject, h.id, t.key IS NULL AS new FROM head h LEFT JOIN there t ON t.key = h.subject
        WHERE CASE WHEN t.key IS NOT NULL THEN t.job_id IS NULL OR t.job_id = t.id
                   -- Its first claim ever, which another may be making: a unique index would have us wait for that one.
                   ELSE (SELECT k.fence FROM worker.subjects k WHERE k.key = h.subject LIMIT 1) IS NULL
                       AND pg_try_advisory_xact_lock(x'6D7702'::int, hashtext(h.subject)) END
        ORDER BY array_position(p_found, h.id) LIMIT p_most
    ), new AS (
        INSERT INTO worker.subjects AS s (key, fence, job_id) SELECT f.subject, 1, f.id FROM free f WHERE f.new ORDER BY f.subject
        ON CONFLICT (key) DO NOTHING RETURNING s.key, s.fence, s.job_id
    ), old AS (
        UPDATE worker.subjects s SET fence = s.fence + 1, job_id = (SELECT f.id FROM free f WHERE f.subject = s.key)
        WHERE s.key = ANY (ARRAY(SELECT f.subject FROM free f WHERE NOT f.new)) RETURNING s.key, s.fence, s.job_id
    ), own AS MATERIALIZED (
        SELECT * FROM new UNION ALL SELECT * FROM old
    ), won AS (
        UPDATE worker.jobs j SET state = 'running', process_id = p_process,
               fence = (SELECT o.fence FROM own o WHERE o.job_id = j.id), claims = j.claims + 1, woken = false,
               due = true, waiting_for = NULL, started_at = coalesce(j.started_at, clock_timestamp()),
               -- What blocks it has passed; why it undoes has not.
               error = CASE WHEN j.direction = 'back' OR j.cancel_requested_at IS NOT NULL THEN coalesce(j.error -> 'undoing', j.error) END
        WHERE j.id = ANY (ARRAY(SELECT o.job_id FROM own o)) RETURNING j.id
    )
    SELECT (SELECT coalesce(array_agg(w.id ORDER BY array_position(p_found, w.id)), '{}') FROM won w),
           (SELECT coalesce(array_agg(t.key), '{}') FROM there t WHERE t.job_id IS NOT NULL)
    INTO taken, v_held;
    moved := cardinality(taken) > 0;
    IF cardinality(taken) = cardinality(p_found) THEN
        RETURN;
    END IF;
    -- A job that supersedes ends who holds its subject, also one that was stored later or at the same moment and came first.
    -- A holder whose row is locked is asked again at the next look, never waited for: it may be waiting for the subject's row.
    FOR v IN
        SELECT h.id, h.state, j.id AS taker, j.kind, h.steps[worker.stands_at(h) + 1] AS step FROM worker.jobs j
        JOIN worker.subjects s ON s.key = j.subject AND s.job_id <> j.id
        JOIN worker.jobs h ON h.id = s.job_id AND h.superseded_by IS NULL AND h.kind <> j.kind
        WHERE j.id = ANY (p_found) AND j.supersedes AND (s.key = ANY (v_held) OR s.job_id = ANY (taken)) FOR UPDATE OF h SKIP LOCKED
    LOOP
        INSERT INTO worker.job_events (job_id, what, detail) VALUES (v.id, 'superseded', jsonb_build_object('by', v.taker));
        moved := true;
        IF v.state = 'running' THEN
            UPDATE worker.jobs j SET superseded_by = v.taker WHERE j.id = v.id;
        ELSE
            PERFORM worker.end_unclaimed(v.id, 'cancelled', worker.superseded_error(v.kind, v.step), v.taker);
        END IF;
    END LOOP;
    -- Whoever lost its subject leaves the ready index until the holder rests. The subject's row is locked by us, so a holder that
    -- is about to rest cannot miss what is parked here.
    WITH parked AS (
        UPDATE worker.jobs j SET parked = true FROM worker.subjects s JOIN worker.jobs h ON h.id = s.job_id
        WHERE j.id = ANY (p_found) AND j.state = 'queued' AND NOT j.id = ANY (taken) AND s.key = j.subject AND s.job_id <> j.id
          AND (s.key = ANY (v_held) OR s.job_id = ANY (taken))
          AND (h.superseded_by IS NOT NULL OR NOT (j.supersedes AND j.kind <> h.kind))
        RETURNING j.subject
    ), awaited AS (
        UPDATE worker.subjects s SET awaited = true WHERE s.key IN (SELECT p.subject FROM parked p) AND NOT s.awaited
    )
    SELECT count(*) INTO v_parked FROM parked;
    moved := moved OR v_parked > 0;
END $$;

CREATE OR REPLACE FUNCTION worker.claim(p_process int, p_queues text[], p_n int, p_ids uuid[] DEFAULT NULL, p_after text DEFAULT '')
RETURNS TABLE (id uuid, kind text, subject text, args jsonb, steps text[], only_forward boolean, direction text, position_ int,
               attempt int, fence bigint, claims int, stop text, error jsonb, requested_by text, traceparent text, past jsonb,
               org text, family jsonb, waited_ms float8, age_ms float8)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    v_process worker.processes;
    v_takes int[];
    v_found uuid[];
    v_paused boolean;
    v_taken uuid[] := '{}';
    v record;
BEGIN
    SELECT * INTO v_process FROM worker.processes p WHERE p.id = p_process;
    -- Whose lease is over takes nothing: it could not begin it, and each job that it took would count as a crash.
    IF (v_process.lease_until > clock_timestamp()) IS NOT TRUE THEN
        RETURN;
    END IF;
    v_paused := EXISTS (SELECT FROM worker.pauses p WHERE p.scope <> 'host');
    IF EXISTS (SELECT FROM worker.pauses p WHERE p.scope = 'host' AND p.what = v_process.host) THEN
        RETURN;
    END IF;
    IF NOT v_process.queues @> p_queues THEN
        UPDATE worker.processes p SET queues = p_queues WHERE p.id = p_process;
    END IF;
    v_takes := worker.takes(p_process, v_process.able);
    PERFORM worker.call();
    -- Jobs behind a busy subject are parked as they are found, each once; so a look that found only such looks on, further.
    FOR v_round IN 0..5 LOOP
        IF p_ids IS NULL THEN
            v_found := worker.in_turn(p_process, p_queues, CASE v_round WHEN 0 THEN p_n ELSE greatest(p_n, 100) END, p_after, v_takes);
        ELSE
            SELECT array_agg(c.id) INTO v_found FROM (
                SELECT j.id FROM worker.jobs j
                WHERE j.id = ANY (p_ids) AND j.state IN ('queued', 'waiting') AND NOT j.parked AND NOT j.paused
                  AND j.run_at <= clock_timestamp() AND j.queue = ANY (p_queues)
                  AND (j.definition IS NULL OR j.definition = ANY (v_takes))
                  AND (j.crashes < 3 OR NOT EXISTS (
                      SELECT FROM worker.jobs r WHERE r.process_id = p_process AND r.state = 'running' AND r.crashes >= 3))
                ORDER BY j.id LIMIT p_n FOR UPDATE SKIP LOCKED) AS c;
        END IF;
        IF coalesce(cardinality(v_found), 0) = 0 THEN
            -- Whoever has room for one looks at one organisation: its only row may be locked by somebody, and the others must not starve.
            EXIT WHEN v_round > 0 OR p_ids IS NOT NULL;
            CONTINUE;
        END IF;
        IF v_paused THEN
            v_found := worker.not_paused(v_found);
            CONTINUE WHEN cardinality(v_found) = 0;
        END IF;
        v := worker.take(p_process, v_found, p_n - cardinality(v_taken));
        v_taken := v_taken || v.taken;
        EXIT WHEN cardinality(v_taken) >= p_n OR p_ids IS NOT NULL OR (NOT v.moved AND v_round > 0);
    END LOOP;
    IF cardinality(v_taken) = 0 THEN
        RETURN;
    END IF;
    RETURN QUERY
        SELECT j.id, j.kind, j.subject, j.args, j.steps, j.only_forward, j.direction, j.position::int, j.attempt, j.fence, j.claims,
               CASE WHEN j.superseded_by IS NOT NULL THEN 'superseded' WHEN j.cancel_requested_at IS NOT NULL THEN 'cancelled' END,
               j.error, j.requested_by, j.traceparent,
               CASE WHEN j.claims > 1 THEN (
                   SELECT jsonb_agg(jsonb_build_object('direction', s.direction, 'position', s.position, 'name', s.name, 'status', s.status,
                          'facts', s.facts, 'ago_ms', extract(epoch FROM clock_timestamp() - s.started_at) * 1000) ORDER BY s.direction, s.position)
                   FROM worker.steps s WHERE s.job_id = j.id) END,
               j.org,
               CASE WHEN j.claims > 1 THEN worker.family(j.id) END,
               extract(epoch FROM clock_timestamp() - j.run_at)::float8 * 1000, extract(epoch FROM clock_timestamp() - j.created_at)::float8 * 1000
        FROM unnest(v_taken) WITH ORDINALITY AS t(id, n) JOIN worker.jobs j ON j.id = t.id ORDER BY t.n;
END $$;

-- What became of a job's children, by the position of the step that spread them.
CREATE OR REPLACE FUNCTION worker.family(p_parent uuid) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_object_agg(f.position, jsonb_build_object('total', f.total, 'open', f.open, 'succeeded', f.succeeded, 'failed', f.failed,
                                                           'cancelled', f.cancelled))
    FROM (SELECT c.position, count(*) AS total, count(*) FILTER (WHERE c.state IS NULL) AS open,
                 count(*) FILTER (WHERE c.state = 'succeeded') AS succeeded, count(*) FILTER (WHERE c.state = 'failed') AS failed,
                 count(*) FILTER (WHERE c.state = 'cancelled') AS cancelled
          FROM worker.children c WHERE c.parent = p_parent GROUP BY c.position) AS f
$$;
