-- What people and programs read.

DROP VIEW IF EXISTS worker.job_status;
CREATE VIEW worker.job_status AS
SELECT j.id, j.kind, j.subject, j.state,
       -- What failed is the step that a person asks about, and not the last one that was undone.
       CASE WHEN j.state IN ('failed', 'cancelled') AND j.error ? 'step' THEN j.error ->> 'step' ELSE j.steps[here.position + 1] END AS step,
       j.direction, j.attempt, j.requested_by, j.priority, j.run_at,
       -- done of total: steps, or the units of the current step where it counts them; the fraction is always of the whole job.
       jsonb_build_object('done', coalesce(units.done, done.n, 0), 'total', coalesce(units.total, cardinality(j.steps)),
           'fraction', round((coalesce(done.n, 0) + coalesce(units.done::numeric / units.total, 0)) / cardinality(j.steps), 3),
           'eta_seconds', eta.seconds, 'rate_per_second', round(units.rate::numeric, 3)) AS progress,
       j.created_at, j.started_at, j.finished_at, j.error, coalesce(done.steps, '[]') AS steps,
       j.waiting_for, j.org, j.queue, j.args, j.cancel_requested_at, j.superseded_by, j.parked, j.paused
FROM worker.jobs j
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE s.direction = 'forward' AND s.status IN ('done', 'skipped')) AS n,
           max(s.position + 1) FILTER (WHERE s.direction = 'forward' AND s.status IN ('done', 'skipped')) AS ahead,
           max(s.finished_at) FILTER (WHERE s.direction = 'forward' AND s.status IN ('done', 'skipped')) AS last_end,
           min(s.position - 1) FILTER (WHERE s.direction = 'back' AND s.status IN ('done', 'skipped')) AS behind,
           jsonb_agg(jsonb_build_object('name', CASE s.direction WHEN 'back' THEN 'undo ' ELSE '' END || s.name, 'state', s.status,
               'attempts', s.attempt + 1, 'started_at', s.started_at, 'finished_at', s.finished_at,
               'duration_ms', round(extract(epoch FROM coalesce(s.finished_at, clock_timestamp()) - s.started_at) * 1000), 'facts', s.facts)
               ORDER BY s.direction DESC, CASE s.direction WHEN 'forward' THEN s.position ELSE -s.position END) AS steps
    FROM worker.steps s WHERE s.job_id = j.id) AS done ON true
-- What worker.stands_at (20_rest.sql) says, once more: the client role may read this view, and not execute that.
CROSS JOIN LATERAL (SELECT CASE j.direction
    WHEN 'forward' THEN least(greatest(j.position, done.ahead), cardinality(j.steps) - 1)
    ELSE greatest(least(j.position, done.behind), 0) END AS position) AS here
-- The step's own beginning, also when an earlier process began it; NULL while it is not begun.
CROSS JOIN LATERAL (SELECT extract(epoch FROM clock_timestamp() - coalesce(
    (SELECT s.started_at FROM worker.steps s WHERE s.job_id = j.id AND s.direction = j.direction AND s.position = here.position AND s.status = 'waiting'),
    CASE j.state WHEN 'running' THEN coalesce(done.last_end, j.started_at) END))::float8 AS seconds) AS inside
-- A job that runs on has left behind the step whose units are in its row.
LEFT JOIN LATERAL (SELECT least(j.units_done, j.units_total) AS done, j.units_total AS total, j.units_done / nullif(inside.seconds, 0) AS rate
    WHERE j.units_total > 0 AND here.position = j.position AND j.state IN ('running', 'waiting')) AS units ON true
-- What is left of this step and of those behind it, by what they took lately; NULL where one of them has no history, and on the way back.
LEFT JOIN LATERAL (
    SELECT round(CASE WHEN count(rest.seconds) = count(*) THEN sum(rest.seconds)
               + CASE j.state WHEN 'queued' THEN greatest(extract(epoch FROM j.run_at - clock_timestamp())::float8, 0) ELSE 0 END END::numeric, 1) AS seconds
    FROM generate_series(here.position, cardinality(j.steps) - 1) AS n(position)
    CROSS JOIN LATERAL (
        SELECT max(d.p50_ms) FILTER (WHERE d.variant = '') / 1000 AS usual, max(d.p50_ms) FILTER (WHERE d.variant = 'miss') / 1000 AS miss,
               max(d.p95_ms) FILTER (WHERE d.variant = 'hit') / 1000 AS longest_hit
        FROM worker.durations d WHERE d.kind = j.kind AND d.step = j.steps[n.position + 1]) AS took
    CROSS JOIN LATERAL (SELECT CASE
        WHEN n.position > here.position OR inside.seconds IS NULL THEN took.usual
        WHEN units.rate > 0 THEN (units.total - units.done) / units.rate
        -- A failed attempt begins anew, and when is known.
        WHEN j.state = 'waiting' AND j.attempt > 0 THEN took.usual + greatest(extract(epoch FROM j.run_at - clock_timestamp())::float8, 0)
        -- Longer than nearly all that found what they needed: this one did not.
        WHEN took.usual IS NOT NULL THEN greatest(CASE WHEN inside.seconds > took.longest_hit THEN coalesce(took.miss, took.usual) ELSE took.usual END - inside.seconds, 0)
        END AS seconds) AS rest
    WHERE j.direction = 'forward' AND j.state IN ('queued', 'running', 'waiting')) AS eta ON true;
COMMENT ON VIEW worker.job_status IS 'Stable: the JSON of `jobs show` as columns.';
COMMENT ON COLUMN worker.job_status.progress IS 'eta_seconds: from now until the end; of a job that is not due with the time until run_at, once.';

DROP VIEW IF EXISTS worker.violations;
CREATE VIEW worker.violations AS
SELECT 'running without a living process' AS what, j.id::text AS which FROM worker.jobs j LEFT JOIN worker.processes p ON p.id = j.process_id
    WHERE j.state = 'running' AND (p.id IS NULL OR p.lease_until < clock_timestamp() - interval '10 seconds')
UNION ALL SELECT 'two jobs hold one subject', j.subject FROM worker.jobs j
    WHERE j.state IN ('running', 'waiting', 'blocked') GROUP BY j.subject HAVING count(*) > 1
UNION ALL SELECT 'fence of job and subject differ', j.id::text FROM worker.jobs j JOIN worker.subjects s ON s.key = j.subject
    WHERE j.state = 'running' AND (s.job_id IS DISTINCT FROM j.id OR s.fence IS DISTINCT FROM j.fence)
UNION ALL SELECT 'subject held by a job at rest', s.key FROM worker.subjects s JOIN worker.jobs j ON j.id = s.job_id
    WHERE j.state IN ('succeeded', 'failed', 'cancelled')
UNION ALL SELECT 'gap before a finished step', j.id::text FROM worker.jobs j JOIN worker.steps s ON s.job_id = j.id
    WHERE s.direction = 'forward' AND s.status = 'done' AND s.position > 0 AND NOT EXISTS (
        SELECT FROM worker.steps b WHERE b.job_id = s.job_id AND b.direction = 'forward' AND b.status IN ('done', 'skipped')
            AND b.position = s.position - 1)
UNION ALL SELECT 'at rest without an end', j.id::text FROM worker.jobs j
    WHERE j.state IN ('succeeded', 'failed', 'cancelled') AND j.finished_at IS NULL
UNION ALL SELECT 'ended before all steps were done', j.id::text FROM worker.jobs j
    WHERE j.state = 'succeeded' AND cardinality(j.steps) <> (
        SELECT count(*) FROM worker.steps s WHERE s.job_id = j.id AND s.direction = 'forward' AND s.status IN ('done', 'skipped'))
UNION ALL SELECT 'failed without an error', j.id::text FROM worker.jobs j WHERE j.state IN ('failed', 'blocked') AND j.error IS NULL
UNION ALL SELECT 'parked behind nobody', j.id::text FROM worker.jobs j LEFT JOIN worker.subjects s ON s.key = j.subject
    WHERE j.state = 'queued' AND j.parked AND s.job_id IS NULL AND NOT coalesce(s.awaited, false)
      AND NOT EXISTS (SELECT FROM worker.jobs o WHERE o.subject = j.subject AND o.state = 'queued' AND NOT o.parked)
UNION ALL SELECT 'live child of nobody', c.job_id::text FROM worker.children c LEFT JOIN worker.jobs j ON j.id = c.job_id
    WHERE c.state IS NULL AND c.job_id IS NOT NULL AND (j.id IS NULL OR j.state IN ('succeeded', 'failed', 'cancelled'))
UNION ALL SELECT 'paused without a pause', j.id::text FROM worker.jobs j WHERE j.paused AND NOT EXISTS (
    SELECT FROM worker.pauses p WHERE p.scope = 'all' OR (p.scope = 'kind' AND p.what = j.kind) OR (p.scope = 'org' AND p.what = j.org));
COMMENT ON VIEW worker.violations IS 'Invariants: empty at the end of every test, a metric in production.';
