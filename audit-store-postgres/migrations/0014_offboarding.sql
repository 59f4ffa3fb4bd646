-- Ends of tenants that were asked for, and what is left of deleted ones.

CREATE TABLE audit.endings (
    tenant_id    uuid        PRIMARY KEY,
    subject      text        COLLATE "C" NOT NULL,
    reason       text        COLLATE "C",
    requested_at timestamptz NOT NULL,
    archived     boolean     NOT NULL,
    signed       boolean     NOT NULL
);

-- Of those that aren't swept there are rows still; those that aren't settled may have left something
-- outside the database. A deleted tenant's row in heads, where its status is, and its leaves in the
-- deployment log stay too.
CREATE TABLE audit.tombstones (
    tenant_id  uuid        PRIMARY KEY,
    origin     text        COLLATE "C",
    size       bigint      NOT NULL,
    root       bytea       NOT NULL,
    checkpoint text        COLLATE "C",
    ended_at   timestamptz NOT NULL,
    swept      boolean     NOT NULL DEFAULT false,
    settled    boolean     NOT NULL DEFAULT false
);
CREATE INDEX tombstones_unswept ON audit.tombstones (tenant_id) WHERE NOT swept;
CREATE INDEX tombstones_unsettled ON audit.tombstones (tenant_id) WHERE NOT settled;

-- Deletes a tenant whose end was asked for and whose log has this size, and not while a hold is open. What
-- it leaves goes in steps. `changed` of nothing: nobody is told of its log any more. The caller holds the
-- head's lock.
CREATE FUNCTION audit.end_tenant(
    tenant uuid, signed_as text, entries bigint, log_root bytea, note text, at timestamptz
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    PERFORM audit.refuse_while_held(tenant);
    DELETE FROM audit.endings WHERE tenant_id = tenant;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'nobody asked for the end of the tenant' USING ERRCODE = '23514';
    END IF;
    UPDATE audit.heads SET status = 'deleted', changed = '0', era = 0
    WHERE tenant_id = tenant AND size = entries;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the log has another size' USING ERRCODE = '23514';
    END IF;
    INSERT INTO audit.tombstones (tenant_id, origin, size, root, checkpoint, ended_at)
    VALUES (tenant, signed_as, entries, log_root, note, at);
    UPDATE audit.tenants
    SET name = tenant::text, secret = decode(repeat('00', 32), 'hex'), public_log = false
    WHERE tenant_id = tenant;
    DELETE FROM audit.api_keys WHERE tenant_id = tenant;
    DELETE FROM audit.tickets WHERE tenant_id = tenant;
END
$function$;

-- Removes at most so many of the rows that a deleted tenant left; true when there is more. No head is
-- locked: nobody's appends wait.
CREATE FUNCTION audit.sweep_deleted(most bigint) RETURNS boolean
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
            RETURN true;
        END IF;
    END LOOP;
    UPDATE audit.tombstones SET swept = true WHERE tenant_id = tenant;
    RETURN EXISTS (SELECT FROM audit.tombstones WHERE NOT swept);
END
$function$;

-- As before, but for deleted tenants, who need nothing.
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
    WHERE h.size > h.pruned_below AND h.status <> 'deleted';
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

REVOKE ALL ON FUNCTION
    audit.end_tenant(uuid, text, bigint, bytea, text, timestamptz), audit.sweep_deleted(bigint)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    audit.end_tenant(uuid, text, bigint, bytea, text, timestamptz), audit.sweep_deleted(bigint)
    TO audit_maintainer;
GRANT SELECT ON audit.endings, audit.tombstones TO audit_writer, audit_maintainer;
GRANT INSERT ON audit.endings TO audit_writer;
GRANT UPDATE (settled) ON audit.tombstones TO audit_maintainer;
