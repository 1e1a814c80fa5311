-- Args, refused before anything is stored; and the place where a job runs.

CREATE OR REPLACE FUNCTION worker.known_args(p_kind worker.kinds) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT 'known args: ' || coalesce(string_agg(a.key || ' (' || (a.value ->> 'type') || ')', ', ' ORDER BY a.key), 'none')
    FROM jsonb_each(p_kind.args) AS a
$$;

CREATE OR REPLACE FUNCTION worker.checked_args(p_kind worker.kinds, p_args jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    v_name text;
    v_rule jsonb;
    v_value jsonb;
    v_out jsonb := '{}';
BEGIN
    IF p_args IS NULL OR jsonb_typeof(p_args) <> 'object' THEN
        RAISE EXCEPTION 'enqueue %: args must be a JSON object', p_kind.kind USING ERRCODE = '22023', HINT = worker.known_args(p_kind);
    END IF;
    FOR v_name IN SELECT k FROM jsonb_object_keys(p_args) AS k WHERE NOT p_kind.args ? k ORDER BY k LOOP
        RAISE EXCEPTION 'enqueue %: unknown arg %', p_kind.kind, to_json(left(v_name, 40))
            USING ERRCODE = '22023', HINT = worker.known_args(p_kind);
    END LOOP;
    FOR v_name, v_rule IN SELECT key, value FROM jsonb_each(p_kind.args) ORDER BY key LOOP
        v_value := p_args -> v_name;
        IF v_value IS NULL OR v_value = 'null' THEN
            IF (v_rule ->> 'required')::boolean THEN
                RAISE EXCEPTION 'enqueue %: arg % is missing', p_kind.kind, v_name USING ERRCODE = '22023', HINT = worker.known_args(p_kind);
            END IF;
            v_value := v_rule -> 'default';
        ELSIF v_rule ->> 'type' = 'uuid' THEN
            IF jsonb_typeof(v_value) <> 'string'
               OR (v_value #>> '{}') !~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' THEN
                RAISE EXCEPTION 'enqueue %: arg % is not a UUID', p_kind.kind, v_name USING ERRCODE = '22023', HINT = worker.known_args(p_kind);
            END IF;
            v_value := to_jsonb(lower(v_value #>> '{}'));
        ELSIF v_rule ->> 'type' = 'boolean' AND jsonb_typeof(v_value) <> 'boolean' THEN
            RAISE EXCEPTION 'enqueue %: arg % is not true or false', p_kind.kind, v_name USING ERRCODE = '22023', HINT = worker.known_args(p_kind);
        ELSIF v_rule ->> 'type' = 'text' AND (jsonb_typeof(v_value) <> 'string' OR length(v_value #>> '{}') NOT BETWEEN 1 AND 200) THEN
            RAISE EXCEPTION 'enqueue %: arg % is not a text of 1 to 200 characters', p_kind.kind, v_name USING ERRCODE = '22023', HINT = worker.known_args(p_kind);
        END IF;
        v_out := v_out || jsonb_build_object(v_name, v_value);
    END LOOP;
    RETURN v_out;
END $$;

CREATE OR REPLACE FUNCTION worker.queue_of(p_kind worker.kinds, p_args jsonb, OUT org text, OUT queue text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT p.org, p.backend || '.' || p.host INTO org, queue FROM worker.placements p
        WHERE p_kind.subject_prefix = 'workspace:' AND p.workspace_id = (p_args ->> p_kind.subject_arg)::uuid;
    IF NOT FOUND THEN
        -- Nobody placed it: it is where the ledger says, because the default may be another host by now.
        SELECT i.default_org, coalesce(l.place, i.default_backend || '.' || i.default_host) INTO org, queue FROM worker.installation i
            LEFT JOIN LATERAL (SELECT e.backend || '.' || e.host AS place FROM worker.ledger e WHERE e.state <> 'gone'
                AND e.subject = p_kind.subject_prefix || (p_args ->> p_kind.subject_arg) ORDER BY e.id DESC LIMIT 1) AS l ON true;
    END IF;
    queue := coalesce(p_kind.queue, queue);
END $$;
