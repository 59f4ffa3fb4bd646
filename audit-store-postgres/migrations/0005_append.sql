-- What an append does under the heads' locks, in fewer round trips.

-- Locks heads, then looks up what has become of the ids: a row with `id` null for each head that was
-- had, a row for each id that is known, and one with nothing but `now`, the clock under the locks.
-- `waits_for` is waited for; of the others those are taken that nobody holds. The last statement sees
-- what the holder that was waited for has committed. The ids are looked up for heads that weren't had,
-- too.
CREATE FUNCTION audit.lock_heads(waits_for uuid, others uuid[], tenants uuid[], ids uuid[])
RETURNS TABLE (
    tenant_id uuid, status text, size bigint, peaks bytea, created_at timestamptz,
    pruned_below bigint, pruned_by bigint, swept_below bigint,
    id uuid, seq bigint, leaf_hash bytea, content_key bytea, content_tag bytea, now timestamptz
)
LANGUAGE plpgsql VOLATILE
AS $function$
#variable_conflict use_column
BEGIN
    IF waits_for IS NOT NULL THEN
        RETURN QUERY
            SELECT h.tenant_id, h.status, h.size, h.peaks, h.created_at, h.pruned_below,
                h.pruned_by, h.swept_below, NULL::uuid, NULL::bigint, NULL::bytea, NULL::bytea,
                NULL::bytea, NULL::timestamptz
            FROM audit.heads h WHERE h.tenant_id = waits_for FOR UPDATE;
    END IF;
    IF others <> '{}' THEN
        RETURN QUERY
            SELECT h.tenant_id, h.status, h.size, h.peaks, h.created_at, h.pruned_below,
                h.pruned_by, h.swept_below, NULL::uuid, NULL::bigint, NULL::bytea, NULL::bytea,
                NULL::bytea, NULL::timestamptz
            FROM audit.heads h WHERE h.tenant_id = ANY (others)
            ORDER BY h.tenant_id FOR UPDATE SKIP LOCKED;
    END IF;
    -- One index look-up for each id: OFFSET 0 keeps the planner from making a join of it, which it
    -- would plan for as many ids as it thinks that an array has.
    RETURN QUERY
        SELECT w.tenant_id, NULL::text, NULL::bigint, NULL::bytea, k.created_at, NULL::bigint,
            NULL::bigint, NULL::bigint, w.id, k.seq, k.leaf_hash, k.content_key, k.content_tag,
            NULL::timestamptz
        FROM unnest(tenants, ids) AS w (tenant_id, id)
        CROSS JOIN LATERAL (
            SELECT * FROM audit.ids i WHERE i.tenant_id = w.tenant_id AND i.id = w.id OFFSET 0
        ) k
        UNION ALL
        SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
            clock_timestamp();
END
$function$;
REVOKE ALL ON FUNCTION audit.lock_heads(uuid, uuid[], uuid[], uuid[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit.lock_heads(uuid, uuid[], uuid[], uuid[]) TO audit_writer;

-- As before, but asked without a call for each head.
DROP TRIGGER heads_only_grow ON audit.heads;
CREATE OR REPLACE FUNCTION audit.heads_only_grow() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RAISE EXCEPTION 'audit.heads: a head only grows' USING ERRCODE = '23514';
END
$function$;
CREATE TRIGGER heads_only_grow BEFORE UPDATE ON audit.heads
    FOR EACH ROW WHEN (
        NEW.tenant_id <> OLD.tenant_id OR NEW.size < OLD.size OR NEW.pruned_below < OLD.pruned_below
        OR NEW.swept_below < OLD.swept_below OR NEW.created_at < OLD.created_at
    )
    EXECUTE FUNCTION audit.heads_only_grow();

-- Which tenants grew is looked up by `era`, `changed` in steps of 256 transactions. An index on
-- `changed` itself would make each update of a head write all of the table's indexes; a head whose era
-- stays the same is updated within its page.
ALTER TABLE audit.heads ADD COLUMN era bigint NOT NULL DEFAULT 0;
UPDATE audit.heads SET era = changed::text::bigint >> 8;
DROP INDEX audit.heads_changed;
CREATE INDEX heads_era ON audit.heads (era);
GRANT UPDATE (era) ON audit.heads TO audit_writer, audit_maintainer;

-- A server of before this migration, which still runs, writes `changed` alone. An update that writes
-- both doesn't come to the function.
CREATE FUNCTION audit.era_follows() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    NEW.era := NEW.changed::text::bigint >> 8;
    RETURN NEW;
END
$function$;
REVOKE ALL ON FUNCTION audit.era_follows() FROM PUBLIC;
CREATE TRIGGER era_follows BEFORE UPDATE ON audit.heads
    FOR EACH ROW WHEN (NEW.era IS DISTINCT FROM NEW.changed::text::bigint >> 8)
    EXECUTE FUNCTION audit.era_follows();

-- Documents are some KB at most; compressed, or kept beside the table, each would cost more to write
-- than all else of its row.
ALTER TABLE audit.index_documents SET (toast_tuple_target = 8160);

-- As before, and first keeps indexers out: one that read the entries before they were pruned would
-- write their documents after they were removed. One that begins with the tenant is waited for where
-- the row is inserted. The head's lock is taken last.
CREATE OR REPLACE FUNCTION audit.sweep_step(most bigint) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    tenant uuid;
    low    bigint;
    high   bigint;
    first  timestamptz;
    last   timestamptz;
BEGIN
    SELECT tenant_id, swept_below, least(pruned_below, swept_below + most)
    INTO tenant, low, high
    FROM audit.heads WHERE swept_below < pruned_below ORDER BY tenant_id LIMIT 1;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO audit.index_progress (tenant_id, through) VALUES (tenant, 0)
    ON CONFLICT DO NOTHING;
    PERFORM FROM audit.index_progress WHERE tenant_id = tenant FOR UPDATE;
    SELECT created_at INTO first FROM audit.ids WHERE tenant_id = tenant AND seq = low;
    SELECT created_at INTO last FROM audit.ids WHERE tenant_id = tenant AND seq = high - 1;
    DELETE FROM audit.events
    WHERE tenant_id = tenant AND created_at >= first AND created_at <= last
        AND seq >= low AND seq < high;
    UPDATE audit.ids SET content_key = NULL, content_tag = NULL
    WHERE tenant_id = tenant AND seq >= low AND seq < high AND content_key IS NOT NULL;
    UPDATE audit.heads SET swept_below = high WHERE tenant_id = tenant AND swept_below < high;
    RETURN EXISTS (SELECT FROM audit.heads WHERE swept_below < pruned_below);
END
$function$;
