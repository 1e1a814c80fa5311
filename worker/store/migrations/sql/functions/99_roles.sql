-- Who may do what. Last, because it is about everything above; called by each `migrate`, so that a role which was missing is
-- given its rights once somebody has made it. Answers whether the role is there.

CREATE OR REPLACE FUNCTION worker.grant_rights() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Postgres lets everybody execute a new function; what is ours is ours alone.
    REVOKE ALL ON SCHEMA worker FROM PUBLIC;
    REVOKE ALL ON ALL TABLES IN SCHEMA worker FROM PUBLIC;
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA worker FROM PUBLIC;
    BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'molecule_worker_client') THEN
            CREATE ROLE molecule_worker_client NOLOGIN;
        END IF;
    EXCEPTION
        WHEN insufficient_privilege THEN
            RAISE NOTICE 'role molecule_worker_client is missing, and this user may not create it';
            RETURN false;
        WHEN duplicate_object OR unique_violation THEN
            NULL; -- another database of this server was migrated at the same moment
    END;
    REVOKE ALL ON ALL TABLES IN SCHEMA worker FROM molecule_worker_client;
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA worker FROM molecule_worker_client;
    GRANT USAGE ON SCHEMA worker TO molecule_worker_client;
    GRANT EXECUTE ON FUNCTION worker.enqueue(text, jsonb, text, timestamptz, int, text, text), worker.cancel(uuid, text, text),
        worker.retry(uuid, text, text) TO molecule_worker_client;
    GRANT SELECT ON worker.job_status TO molecule_worker_client;
    RETURN true;
END $$;
