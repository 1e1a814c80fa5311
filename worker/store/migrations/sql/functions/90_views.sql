-- What people and programs read.

DROP VIEW IF EXISTS worker.job_status;
CREATE VIEW worker.job_status AS
SELECT j.id, j.kind, j.subject, j.state,
       -- What failed is the step that a person asks about, and not the last one that was undone.
       CASE WHEN j.state IN ('failed', 'cancelled') AND j.error ? 'step' THEN j.error ->> 'step' ELSE j.steps[1 + coalesce(CASE j.direction
           WHEN 'forward' THEN least(greatest(j.position, done.ahead), cardinality(j.steps) - 1) ELSE j.position END, 0)] END AS step,
       j.direction, j.attempt, j.requested_by, j.priority, j.run_at,
       jsonb_build_object('done', coalesce(done.n, 0), 'total', cardinality(j.steps),
           'fraction', round(coalesce(done.n, 0)::numeric / cardinality(j.steps), 3), 'eta_seconds', NULL, 'rate_per_second', NULL) AS progress,
       j.created_at, j.started_at, j.finished_at, j.error, coalesce(done.steps, '[]') AS steps,
       j.waiting_for, j.org, j.queue, j.args, j.cancel_requested_at, j.superseded_by, j.parked
FROM worker.jobs j
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE s.direction = 'forward' AND s.status = 'done') AS n,
           max(s.position + 1) FILTER (WHERE s.direction = 'forward' AND s.status = 'done') AS ahead,
           jsonb_agg(jsonb_build_object('name', CASE s.direction WHEN 'back' THEN 'undo ' ELSE '' END || s.name, 'state', s.status,
               'attempts', s.attempt + 1, 'started_at', s.started_at, 'finished_at', s.finished_at,
               'duration_ms', round(extract(epoch FROM coalesce(s.finished_at, clock_timestamp()) - s.started_at) * 1000), 'facts', s.facts)
               ORDER BY s.direction DESC, CASE s.direction WHEN 'forward' THEN s.position ELSE -s.position END) AS steps
    FROM worker.steps s WHERE s.job_id = j.id) AS done ON true;
COMMENT ON VIEW worker.job_status IS 'Stable: the JSON of `jobs show` as columns.';

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
