-- Whoever appends can't have a tenant deleted: its end is kept by an owner's function, for the role that
-- may erase, and partitions are dropped by what was deleted by one, not by a status.

REVOKE INSERT ON audit.endings FROM audit_writer;

-- Keeps an end that is asked for, and closes the tenant to what is new; not while a hold is open. The
-- caller holds the head's lock, and has appended what says so.
CREATE FUNCTION audit.begin_ending(
    tenant uuid, who text, why text, at timestamptz, is_archived boolean, is_signed boolean
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    PERFORM audit.refuse_while_held(tenant);
    UPDATE audit.heads SET status = 'inactive' WHERE tenant_id = tenant AND status <> 'deleted';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no such tenant, or it was deleted' USING ERRCODE = '23514';
    END IF;
    INSERT INTO audit.endings (tenant_id, subject, reason, requested_at, archived, signed)
    VALUES (tenant, who, why, at, is_archived, is_signed);
END
$function$;

-- As before, but for tenants of which there is a tombstone, who need nothing. A status says nothing here:
-- others than the owner may change it.
CREATE OR REPLACE FUNCTION audit.drop_pruned_partition() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms'
AS $function$
DECLARE
    needed    timestamptz;
    part      name;
    timescale name;
BEGIN
    SELECT least(min(i.created_at), now() - interval '1 day') INTO needed
    FROM audit.heads h
    JOIN audit.ids i ON i.tenant_id = h.tenant_id AND i.seq = h.pruned_below
    WHERE h.size > h.pruned_below
        AND NOT EXISTS (SELECT FROM audit.tombstones s WHERE s.tenant_id = h.tenant_id);
    IF (SELECT relkind FROM pg_class WHERE oid = 'audit.events'::regclass) <> 'p' THEN
        SELECT n.nspname INTO timescale
        FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
        WHERE e.extname = 'timescaledb';
        EXECUTE format('SELECT %I.drop_chunks(''audit.events'', older_than => $1)', timescale)
            USING needed;
        RETURN false;
    END IF;
    SELECT c.relname INTO part
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'audit.events'::regclass
        AND to_date(substr(c.relname, 8) || '01', 'YYYYMMDD') + interval '1 month'
            <= needed AT TIME ZONE 'UTC'
    ORDER BY c.relname LIMIT 1;
    IF part IS NULL THEN
        RETURN false;
    END IF;
    EXECUTE format('DROP TABLE audit.%I', part);
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN NULL;
END
$function$;

REVOKE ALL ON FUNCTION audit.begin_ending(uuid, text, text, timestamptz, boolean, boolean)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit.begin_ending(uuid, text, text, timestamptz, boolean, boolean)
    TO audit_maintainer;
