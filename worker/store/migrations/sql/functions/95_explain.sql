-- All that decides whether a job runs now, in one look: worker/engine/explain.py says it in words. NULL: there is no such job.
CREATE OR REPLACE FUNCTION worker.standing(p_job uuid) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_build_object(
        'id', j.id, 'kind', j.kind, 'subject', j.subject, 'state', j.state, 'direction', j.direction, 'org', j.org, 'queue', j.queue,
        'step', v.step, 'number', coalesce(array_position(j.steps, v.step), j.position + 1), 'of', cardinality(j.steps),
        'run_at', j.run_at, 'due_in_s', extract(epoch FROM j.run_at - clock_timestamp()), 'due', j.due, 'attempt', j.attempt,
        'crashes', j.crashes, 'parked', j.parked, 'paused', j.paused, 'cancelling', j.cancel_requested_at IS NOT NULL,
        'waiting_for', j.waiting_for, 'error', j.error, 'finished_at', j.finished_at,
        'since', coalesce((SELECT s.started_at FROM worker.steps s WHERE s.job_id = j.id AND s.direction = j.direction
                               AND s.status = 'waiting' AND s.name = v.step),
                          (SELECT max(s.finished_at) FROM worker.steps s WHERE s.job_id = j.id), j.started_at),
        'fault', (SELECT s.error FROM worker.steps s WHERE s.job_id = j.id AND s.direction = j.direction AND s.status = 'waiting' AND s.name = v.step),
        'skippable', j.direction = 'back' OR EXISTS (SELECT FROM worker.kinds k WHERE k.kind = j.kind AND v.step = ANY (k.skippable)),
        -- The first that was skipped, where a retry from there does it after all.
        'passed_undone', (SELECT s.name FROM worker.steps s WHERE s.job_id = j.id AND s.direction = j.direction AND s.status = 'skipped'
                            AND (j.only_forward OR j.direction = 'back')
                          ORDER BY CASE j.direction WHEN 'forward' THEN s.position ELSE -s.position END LIMIT 1),
        'superseded_by', (SELECT jsonb_build_object('id', o.id, 'kind', o.kind, 'state', o.state, 'step', o.steps[worker.stands_at(o) + 1])
                          FROM worker.jobs o WHERE o.id = j.superseded_by),
        'holder', (SELECT jsonb_build_object('id', h.id, 'kind', h.kind, 'state', h.state, 'step', o.step)
                   FROM worker.subjects s JOIN worker.jobs h ON h.id = s.job_id JOIN worker.job_status o ON o.id = h.id
                   WHERE s.key = j.subject AND h.id <> j.id),
        'first', (SELECT jsonb_build_object('id', o.id, 'kind', o.kind, 'state', o.state, 'step', o.steps[o.position + 1])
                  FROM worker.jobs o WHERE o.subject = j.subject AND o.state = 'queued' AND o.id <> j.id AND NOT o.parked AND NOT o.paused
                    AND o.due AND j.state = 'queued' AND (o.priority, o.seq) < (j.priority, j.seq) ORDER BY o.priority, o.seq LIMIT 1),
        'process', (SELECT jsonb_build_object('name', p.name, 'host', p.host, 'alive', p.lease_until > clock_timestamp())
                    FROM worker.processes p WHERE p.id = j.process_id),
        'processes', (SELECT jsonb_build_object('alive', count(*), 'serving', count(*) FILTER (WHERE p.serves),
                          'able', count(*) FILTER (WHERE p.serves AND p.knows),
                          'free', count(*) FILTER (WHERE p.serves AND p.knows AND NOT p.drained))
                      FROM (SELECT j.queue = ANY (p.queues) AS serves, j.definition IS NULL OR coalesce(j.definition = ANY (p.able),
                                       EXISTS (SELECT FROM worker.definitions d WHERE d.id = j.definition AND d.first)) AS knows,
                                   EXISTS (SELECT FROM worker.pauses u WHERE u.scope = 'host' AND u.what = p.host) AS drained
                            FROM worker.processes p WHERE p.lease_until > clock_timestamp()) AS p),
        'pauses', (SELECT coalesce(jsonb_agg(jsonb_build_object('scope', u.scope, 'what', u.what, 'reason', u.reason,
                              'requested_by', u.requested_by, 'at', u.at) ORDER BY u.at), '[]')
                   FROM worker.pauses u WHERE u.scope = 'all' OR (u.scope = 'kind' AND u.what = j.kind) OR (u.scope = 'org' AND u.what = j.org)
                     OR (u.scope = 'host' AND u.what IN (SELECT p.host FROM worker.processes p WHERE p.lease_until > clock_timestamp()
                             AND (p.id = j.process_id OR j.queue = ANY (p.queues))))),
        -- Up to a thousand, because no look grows with the backlog.
        'before', (SELECT count(*) FROM (SELECT FROM worker.jobs o WHERE o.queue = j.queue AND o.org = j.org AND o.state IN ('queued', 'waiting')
                       AND o.due AND NOT o.parked AND NOT o.paused AND (o.priority, o.seq) < (j.priority, j.seq) LIMIT 1000) AS b),
        'children', (SELECT jsonb_build_object('live', count(*) FILTER (WHERE c.job_id IS NOT NULL), 'unstarted', count(*) FILTER (WHERE c.job_id IS NULL))
                     FROM worker.children c WHERE c.parent = j.id AND c.state IS NULL))
    FROM worker.jobs j JOIN worker.job_status v ON v.id = j.id WHERE j.id = p_job
$$;
