-- How long entries are kept, and legal holds. Whoever changes them, erases or prunes holds the head's
-- lock. `retention` is JSON, which nothing here reads.

CREATE TABLE audit.retention (
    tenant_id uuid PRIMARY KEY,
    retention text COLLATE "C" NOT NULL
);

CREATE TABLE audit.legal_holds (
    tenant_id   uuid        NOT NULL,
    id          uuid        NOT NULL,
    name        text        COLLATE "C" NOT NULL,
    reason      text        COLLATE "C",
    placed_by   text        COLLATE "C",
    placed_at   timestamptz NOT NULL,
    released_at timestamptz,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX legal_holds_open ON audit.legal_holds (tenant_id, placed_at, id)
    WHERE released_at IS NULL;

CREATE VIEW audit.tenant_retention AS
    SELECT * FROM audit.retention
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);
CREATE VIEW audit.tenant_legal_holds AS
    SELECT * FROM audit.legal_holds
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);

-- Refuses, while a hold of the tenant is open, whoever asks: a program from before this migration and
-- somebody with SQL of their own, too. Placing a hold takes the head's lock.
CREATE FUNCTION audit.refuse_while_held(tenant uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    PERFORM FROM audit.heads WHERE tenant_id = tenant FOR UPDATE;
    IF EXISTS (SELECT FROM audit.legal_holds WHERE tenant_id = tenant AND released_at IS NULL) THEN
        RAISE EXCEPTION 'a legal hold protects the log' USING ERRCODE = 'AU001';
    END IF;
END
$function$;
REVOKE ALL ON FUNCTION audit.refuse_while_held(uuid) FROM PUBLIC;

-- As before, and not while a hold is open.
CREATE OR REPLACE FUNCTION audit.erase_entries(
    tenant uuid, seqs bigint[], times timestamptz[], openings bytea[], groups integer[]
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT audit.refuse_while_held(tenant);

    UPDATE audit.events e SET
        opening = w.opening,
        user_id = CASE WHEN w.gone & 1 = 0 THEN e.user_id END,
        actor_type = CASE WHEN w.gone & 1 = 0 THEN e.actor_type END,
        actor_name = CASE WHEN w.gone & 1 = 0 THEN e.actor_name END,
        on_behalf_of = CASE WHEN w.gone & 1 = 0 THEN e.on_behalf_of END,
        resource_type = CASE WHEN w.gone & 2 = 0 THEN e.resource_type END,
        resource_id = CASE WHEN w.gone & 2 = 0 THEN e.resource_id END,
        resource_name = CASE WHEN w.gone & 2 = 0 THEN e.resource_name END,
        related_resources = CASE WHEN w.gone & 2 = 0 THEN e.related_resources END,
        session_id = CASE WHEN w.gone & 4 = 0 THEN e.session_id END,
        request_id = CASE WHEN w.gone & 4 = 0 THEN e.request_id END,
        trace_id = CASE WHEN w.gone & 4 = 0 THEN e.trace_id END,
        user_agent = CASE WHEN w.gone & 4 = 0 THEN e.user_agent END,
        ip_address = CASE WHEN w.gone & 4 = 0 THEN e.ip_address END,
        reason = CASE WHEN w.gone & 8 = 0 THEN e.reason END,
        before_state = CASE WHEN w.gone & 16 = 0 THEN e.before_state END,
        after_state = CASE WHEN w.gone & 32 = 0 THEN e.after_state END,
        metadata = CASE WHEN w.gone & 64 = 0 THEN e.metadata END
    FROM unnest(seqs, times, openings, groups) AS w (seq, created_at, opening, gone)
    WHERE e.tenant_id = tenant AND e.created_at = w.created_at AND e.seq = w.seq;

    UPDATE audit.ids SET content_key = NULL, content_tag = NULL
    WHERE tenant_id = tenant AND seq = ANY (seqs);
$function$;

-- As before, and not while a hold is open.
CREATE OR REPLACE FUNCTION audit.prune_below(
    tenant uuid, below bigint, by bigint,
    days integer[], action_types text[], severities text[], outcomes text[], counts bigint[],
    kept_seqs bigint[], kept_kinds text[], kept_data text[]
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT audit.refuse_while_held(tenant);

    UPDATE audit.heads SET pruned_below = below, pruned_by = by WHERE tenant_id = tenant;

    UPDATE audit.counters c SET count = c.count - w.count
    FROM unnest(days, action_types, severities, outcomes, counts)
        AS w (day, action_type, severity, outcome, count)
    WHERE c.tenant_id = tenant AND c.day = w.day AND c.action_type = w.action_type
        AND c.severity = w.severity AND c.outcome = w.outcome;
    DELETE FROM audit.counters WHERE tenant_id = tenant AND count <= 0;

    DELETE FROM audit.kept_leaves
    WHERE tenant_id = tenant AND seq < below / 256 * 256 AND kind NOT IN ('key', 'epoch');
    INSERT INTO audit.kept_leaves (tenant_id, seq, kind, leaf_data)
    SELECT tenant, w.seq, w.kind, w.leaf_data
    FROM unnest(kept_seqs, kept_kinds, kept_data) AS w (seq, kind, leaf_data);
$function$;

GRANT SELECT ON audit.tenant_retention, audit.tenant_legal_holds
    TO audit_reader, audit_writer, audit_maintainer;
GRANT SELECT ON audit.retention, audit.legal_holds TO audit_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON audit.retention TO audit_maintainer;
-- A hold is never taken out: it is released.
GRANT SELECT, INSERT ON audit.legal_holds TO audit_maintainer;
GRANT UPDATE (released_at) ON audit.legal_holds TO audit_maintainer;
