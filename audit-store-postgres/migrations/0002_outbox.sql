-- Capture in a caller's own transaction. In a database with the schema `audit`, this file alone makes
-- an outbox, whether the log lies there or not; it may be run again.

-- Numbers are never used again, so that saying twice that a row is done can't remove another.
CREATE TABLE IF NOT EXISTS audit.outbox (
    n           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id   uuid        NOT NULL,
    id          uuid        NOT NULL,
    recorded_at timestamptz NOT NULL,
    event       text        NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);

-- A relay that has a backlog takes some of each tenant's.
CREATE INDEX IF NOT EXISTS outbox_tenant ON audit.outbox (tenant_id, n);

-- What the log refused after the caller's commit.
CREATE TABLE IF NOT EXISTS audit.outbox_parked (
    n           bigint      PRIMARY KEY,
    tenant_id   uuid        NOT NULL,
    id          uuid        NOT NULL,
    recorded_at timestamptz NOT NULL,
    event       text        NOT NULL,
    reason      text        NOT NULL
);

-- The rows' owner writes them, whoever calls. Nothing here can fail for what an event says, but for
-- the one check: a caller's transaction is not to be lost to a rule that the log has.
-- There is no NOTIFY: in a caller's transaction it makes all commits of the cluster wait in line.
CREATE OR REPLACE FUNCTION audit.record(tenant uuid, event text) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    most  CONSTANT integer := 512 * 1024;
    kind  text;
    given text;
    id    uuid;
    bytes bytea;
BEGIN
    IF tenant IS NULL THEN
        RAISE EXCEPTION 'audit.record: the tenant is null' USING ERRCODE = '22023';
    END IF;
    IF event IS NULL THEN
        RAISE EXCEPTION 'audit.record: the event is null' USING ERRCODE = '22023';
    END IF;
    IF octet_length(event) > most THEN
        RAISE EXCEPTION 'audit.record: the event has % bytes, more than %', octet_length(event), most
            USING ERRCODE = '22023';
    END IF;
    -- Nothing is written in this block, so its subtransaction takes no transaction id.
    BEGIN
        kind := json_typeof(event::json);
    EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
        kind := NULL;
    END;
    IF kind IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'audit.record: the event is not a JSON object' USING ERRCODE = '22023';
    END IF;
    -- An escape of a character that text can't hold fails here: the log will refuse it, and say why.
    BEGIN
        given := event::json ->> 'id';
    EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
        given := NULL;
    END;
    IF given ~ '^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$' THEN
        id := given::uuid;
    ELSE
        -- RFC 9562, version 7: milliseconds in the first six bytes, version and variant over those
        -- of a random UUID.
        bytes := overlay(
            uuid_send(gen_random_uuid())
            PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
            FROM 1 FOR 6
        );
        id := encode(set_bit(set_bit(bytes, 52, 1), 53, 1), 'hex')::uuid;
    END IF;
    INSERT INTO audit.outbox (tenant_id, id, recorded_at, event)
    VALUES (tenant, id, clock_timestamp(), event);
    RETURN id;
END
$function$;

-- Any caller may name any tenant: who may call is for the operator to say.
REVOKE ALL ON FUNCTION audit.record(uuid, text) FROM PUBLIC;

-- The relay's, where the log is.
DO $do$
BEGIN
    IF to_regrole('audit_writer') IS NOT NULL THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON audit.outbox, audit.outbox_parked TO audit_writer;
    END IF;
END
$do$;
