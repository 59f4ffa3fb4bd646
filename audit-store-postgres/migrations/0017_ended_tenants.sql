-- A tenant's status, its name and whether its log is public are not the writer's to set: whoever appends
-- would open what an operator closed. An owner's function does it, for the role that may erase.

REVOKE UPDATE (status) ON audit.heads FROM audit_writer;
REVOKE UPDATE (name, public_log) ON audit.tenants FROM audit_writer;

-- Changes what is not null, and answers what is there then. The status of a tenant whose end was asked for
-- doesn't change any more, and a deleted one's neither. The caller holds the head's lock, and has appended
-- what says so.
CREATE FUNCTION audit.update_tenant(
    tenant uuid, new_name text, new_public_log boolean, new_status text,
    OUT present_name text, OUT present_public_log boolean
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    PERFORM FROM audit.heads WHERE tenant_id = tenant AND status <> 'deleted';
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no such tenant, or it was deleted' USING ERRCODE = '23514';
    END IF;
    IF new_status IS NOT NULL THEN
        IF EXISTS (SELECT FROM audit.endings WHERE tenant_id = tenant) THEN
            RAISE EXCEPTION 'the end of the tenant was asked for' USING ERRCODE = '23514';
        END IF;
        IF new_status = 'deleted' THEN
            PERFORM audit.refuse_while_held(tenant);
        END IF;
        UPDATE audit.heads SET status = new_status WHERE tenant_id = tenant;
    END IF;
    UPDATE audit.tenants
    SET name = coalesce(new_name, name), public_log = coalesce(new_public_log, public_log)
    WHERE tenant_id = tenant
    RETURNING name, public_log INTO present_name, present_public_log;
END
$function$;

-- Erasures and prunes are refused once the end was asked for: they look for it as for a hold.
CREATE VIEW audit.tenant_endings AS
    SELECT tenant_id, requested_at FROM audit.endings
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);
GRANT SELECT ON audit.tenant_endings TO audit_reader, audit_writer, audit_maintainer;

-- How many accepted events went with a tenant, never appended; null of those that were deleted before.
ALTER TABLE audit.tombstones ADD COLUMN unappended bigint;
ALTER TABLE audit.tombstones ALTER COLUMN unappended SET DEFAULT 0;

-- As before, and counts what was accepted and goes without having been appended.
CREATE OR REPLACE FUNCTION audit.sweep_deleted(most bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    tenant uuid;
    low    bigint;
    high   bigint;
    first  timestamptz;
    last   timestamptz;
    place  text;
    gone   bigint;
BEGIN
    SELECT tenant_id INTO tenant FROM audit.tombstones WHERE NOT swept
    ORDER BY tenant_id LIMIT 1 FOR UPDATE;
    IF NOT FOUND THEN
        -- Somebody else, who was waited for, was through with it.
        RETURN EXISTS (SELECT FROM audit.tombstones WHERE NOT swept);
    END IF;
    SELECT min(seq), max(seq), min(created_at), max(created_at) INTO low, high, first, last
    FROM (
        SELECT seq, created_at FROM audit.ids WHERE tenant_id = tenant ORDER BY seq LIMIT most
    ) AS next;
    IF low IS NOT NULL THEN
        DELETE FROM audit.events
        WHERE tenant_id = tenant AND created_at >= first AND created_at <= last
            AND seq >= low AND seq <= high;
        DELETE FROM audit.ids WHERE tenant_id = tenant AND seq >= low AND seq <= high;
        RETURN true;
    END IF;
    FOREACH place IN ARRAY ARRAY[
        'index_documents', 'index_progress', 'counters', 'subtrees', 'kept_leaves', 'cursors',
        'checkpoints', 'key_changes', 'epochs', 'retention', 'legal_holds', 'erasures',
        'erasure_marks', 'outbox', 'outbox_parked', 'queue_messages', 'queue_dead_letters',
        'api_keys', 'tickets'
    ] LOOP
        EXECUTE format(
            'DELETE FROM audit.%1$I WHERE ctid = ANY (ARRAY(
                 SELECT ctid FROM audit.%1$I WHERE tenant_id = $1 LIMIT $2))', place
        ) USING tenant, most;
        GET DIAGNOSTICS gone = ROW_COUNT;
        IF gone > 0 THEN
            IF place IN ('outbox', 'outbox_parked', 'queue_messages', 'queue_dead_letters') THEN
                UPDATE audit.tombstones SET unappended = unappended + gone
                WHERE tenant_id = tenant;
            END IF;
            RETURN true;
        END IF;
    END LOOP;
    UPDATE audit.tombstones SET swept = true WHERE tenant_id = tenant;
    RETURN EXISTS (SELECT FROM audit.tombstones WHERE NOT swept);
END
$function$;

REVOKE ALL ON FUNCTION audit.update_tenant(uuid, text, boolean, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit.update_tenant(uuid, text, boolean, text) TO audit_maintainer;
