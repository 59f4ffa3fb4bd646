-- The log: events, ids, heads and what is derived from them under the head's lock; tenants and
-- credentials. Run as audit_owner, in a schema that it owns.
--
-- Enumerations are text, by the names of the event format, and raw JSON is text too, kept byte for
-- byte: `jsonb` would change numbers and the order of keys. Texts compare by bytes.

-- Every unique key starts with the tenant and contains created_at, and nothing refers to this table:
-- what holds for partitions and for hypertables alike. No role but the owner can read it.
DO $do$
DECLARE
    timescale name := (
        SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
        WHERE e.extname = 'timescaledb'
    );
BEGIN
    EXECUTE $table$
        CREATE TABLE audit.events (
            tenant_id         uuid        NOT NULL,
            seq               bigint      NOT NULL,
            created_at        timestamptz NOT NULL,
            occurred_at       timestamptz NOT NULL,
            id                uuid        NOT NULL,
            action_type       text        COLLATE "C" NOT NULL,
            severity          text        COLLATE "C" NOT NULL,
            outcome           text        COLLATE "C" NOT NULL,
            kind              text        COLLATE "C" NOT NULL,
            leaf_hash         bytea       NOT NULL,
            opening           bytea       NOT NULL,
            action            text        COLLATE "C" NOT NULL,
            ctl               text        COLLATE "C",
            user_id           text        COLLATE "C",
            actor_type        text        COLLATE "C",
            actor_name        text        COLLATE "C",
            on_behalf_of      text        COLLATE "C",
            resource_type     text        COLLATE "C",
            resource_id       text        COLLATE "C",
            resource_name     text        COLLATE "C",
            related_resources text        COLLATE "C",
            session_id        text        COLLATE "C",
            request_id        text        COLLATE "C",
            trace_id          text        COLLATE "C",
            user_agent        text        COLLATE "C",
            ip_address        inet,
            reason            text        COLLATE "C",
            before_state      text        COLLATE "C",
            after_state       text        COLLATE "C",
            metadata          text        COLLATE "C",
            PRIMARY KEY (tenant_id, created_at, seq)
        )
    $table$ || CASE WHEN timescale IS NULL THEN 'PARTITION BY RANGE (created_at)' ELSE '' END;
    IF timescale IS NOT NULL THEN
        EXECUTE format(
            'SELECT %I.create_hypertable(''audit.events'', ''created_at'',
                chunk_time_interval => interval ''1 month'', create_default_indexes => false)',
            timescale
        );
    END IF;
END
$do$;

CREATE INDEX events_occurred_at ON audit.events (tenant_id, occurred_at, seq);
CREATE INDEX events_user_id ON audit.events (tenant_id, user_id, created_at, seq)
    WHERE user_id IS NOT NULL;
CREATE INDEX events_resource_id ON audit.events (tenant_id, resource_id, created_at, seq)
    WHERE resource_id IS NOT NULL;
CREATE INDEX events_control ON audit.events (tenant_id, created_at, seq) WHERE kind <> 'event';

-- What an id became. Kept after pruning: an id is taken for ever, and the leaf hashes are the tree's.
-- A look-up by id or by position gives created_at, by which partitions are pruned.
CREATE TABLE audit.ids (
    tenant_id   uuid        NOT NULL,
    id          uuid        NOT NULL,
    seq         bigint      NOT NULL,
    created_at  timestamptz NOT NULL,
    leaf_hash   bytea       NOT NULL,
    content_key bytea,
    content_tag bytea,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, seq)
);

-- The state of a tenant's log. Whoever appends, erases, prunes or changes the tenant's status holds
-- this row's lock. `changed` is the transaction that appended last.
CREATE TABLE audit.heads (
    tenant_id    uuid        PRIMARY KEY,
    status       text        COLLATE "C" NOT NULL DEFAULT 'active',
    size         bigint      NOT NULL DEFAULT 0,
    peaks        bytea       NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00Z',
    pruned_below bigint      NOT NULL DEFAULT 0,
    pruned_by    bigint,
    swept_below  bigint      NOT NULL DEFAULT 0,
    changed      xid8        NOT NULL DEFAULT '0'
) WITH (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000
);
CREATE INDEX heads_changed ON audit.heads (changed);
CREATE INDEX heads_unswept ON audit.heads (tenant_id) WHERE swept_below < pruned_below;

CREATE FUNCTION audit.heads_only_grow() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF NEW.tenant_id <> OLD.tenant_id OR NEW.size < OLD.size OR NEW.pruned_below < OLD.pruned_below
        OR NEW.swept_below < OLD.swept_below OR NEW.created_at < OLD.created_at
    THEN
        RAISE EXCEPTION 'audit.heads: a head only grows' USING ERRCODE = '23514';
    END IF;
    RETURN NEW;
END
$function$;
CREATE TRIGGER heads_only_grow BEFORE UPDATE ON audit.heads
    FOR EACH ROW EXECUTE FUNCTION audit.heads_only_grow();

CREATE TABLE audit.tenants (
    tenant_id  uuid        PRIMARY KEY,
    name       text        COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    secret     bytea       NOT NULL
);
CREATE INDEX tenants_name ON audit.tenants (name, tenant_id);

-- Entries that are present, control entries and erased ones too. `day` is the UTC day of created_at,
-- in days since 1970.
CREATE TABLE audit.counters (
    tenant_id   uuid    NOT NULL,
    day         integer NOT NULL,
    action_type text    COLLATE "C" NOT NULL,
    severity    text    COLLATE "C" NOT NULL,
    outcome     text    COLLATE "C" NOT NULL,
    count       bigint  NOT NULL,
    PRIMARY KEY (tenant_id, day, action_type, severity, outcome)
) WITH (fillfactor = 70);

-- Roots of complete subtrees of 256^level leaves, from level 1 on; the leaves' are in ids.
CREATE TABLE audit.subtrees (
    tenant_id uuid     NOT NULL,
    level     smallint NOT NULL,
    idx       bigint   NOT NULL,
    root      bytea    NOT NULL,
    PRIMARY KEY (tenant_id, level, idx)
);

-- Leaf data that outlives a prune: of the bundle that straddles it, and of entries that are never
-- pruned.
CREATE TABLE audit.kept_leaves (
    tenant_id uuid   NOT NULL,
    seq       bigint NOT NULL,
    kind      text   COLLATE "C" NOT NULL,
    leaf_data text   COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, seq)
);

CREATE TABLE audit.cursors (
    tenant_id uuid    NOT NULL,
    consumer  text    COLLATE "C" NOT NULL,
    required  boolean NOT NULL,
    position  bigint  NOT NULL,
    PRIMARY KEY (tenant_id, consumer)
) WITH (fillfactor = 70);

CREATE TABLE audit.api_keys (
    id           uuid        PRIMARY KEY,
    tenant_id    uuid        NOT NULL,
    secret       bytea       NOT NULL UNIQUE,
    name         text        COLLATE "C" NOT NULL,
    role         text        COLLATE "C" NOT NULL,
    permissions  text        COLLATE "C" NOT NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz,
    last_used_at timestamptz
);
CREATE INDEX api_keys_tenant ON audit.api_keys (tenant_id, created_at, id);

CREATE TABLE audit.tickets (
    secret             bytea       PRIMARY KEY,
    tenant_id          uuid        NOT NULL,
    subject            text        COLLATE "C" NOT NULL,
    expires_at         timestamptz NOT NULL,
    session_expires_at timestamptz
);
CREATE INDEX tickets_expires_at ON audit.tickets (expires_at);

-- What a reader sees: the tenant that its transaction named, and without one nothing. Plain views: as
-- security barriers they would keep every condition that isn't leakproof from the indexes.
CREATE VIEW audit.tenant_events AS
    SELECT * FROM audit.events
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);
CREATE VIEW audit.tenant_ids AS
    SELECT * FROM audit.ids
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);
CREATE VIEW audit.tenant_head AS
    SELECT * FROM audit.heads
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);
CREATE VIEW audit.tenant_counters AS
    SELECT * FROM audit.counters
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);
CREATE VIEW audit.tenant_subtrees AS
    SELECT * FROM audit.subtrees
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);
CREATE VIEW audit.tenant_kept_leaves AS
    SELECT * FROM audit.kept_leaves
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);
CREATE VIEW audit.tenant_cursors AS
    SELECT * FROM audit.cursors
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);

-- Makes the partition of a month, unless it is there. It is made beside the table and attached, which
-- waits for nobody's reads and writes. A hypertable makes its chunks itself.
CREATE FUNCTION audit.make_partition(at timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    low  CONSTANT timestamptz := date_trunc('month', at, 'UTC');
    high CONSTANT timestamptz := (low AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
    part CONSTANT text := 'events_' || to_char(low AT TIME ZONE 'UTC', 'YYYYMM');
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = 'audit.events'::regclass) <> 'p'
        OR to_regclass('audit.' || part) IS NOT NULL
    THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('audit.make_partition', 0));
    IF to_regclass('audit.' || part) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format(
        'CREATE TABLE audit.%1$I (LIKE audit.events INCLUDING DEFAULTS INCLUDING STORAGE,
            CONSTRAINT month CHECK (created_at >= %2$L AND created_at < %3$L));
         ALTER TABLE audit.events ATTACH PARTITION audit.%1$I FOR VALUES FROM (%2$L) TO (%3$L);
         ALTER TABLE audit.%1$I DROP CONSTRAINT month;',
        part, low, high
    );
END
$function$;

-- Destroys groups of a tenant's entries; it can do nothing else to them. `groups` has a bit for each
-- group, in the order of the leaf format; `openings` are what still opens the others. The caller
-- holds the head's lock.
CREATE FUNCTION audit.erase_entries(
    tenant uuid, seqs bigint[], times timestamptz[], openings bytea[], groups integer[]
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
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

-- Makes the prefix below a position invisible: sets the head, subtracts from the counters and keeps
-- leaf data that must stay. The caller holds the head's lock and has appended the control entry.
CREATE FUNCTION audit.prune_below(
    tenant uuid, below bigint, by bigint,
    days integer[], action_types text[], severities text[], outcomes text[], counts bigint[],
    kept_seqs bigint[], kept_kinds text[], kept_data text[]
) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
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

-- Removes at most so many rows that are pruned; true when there are more. The head is written last,
-- so that appends wait for the shortest time.
CREATE FUNCTION audit.sweep_step(most bigint) RETURNS boolean
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

-- Drops one partition (of a hypertable: all chunks) that every tenant in it has pruned past its end;
-- true when it did, null when it couldn't have the table at once. What ends later than yesterday is
-- left.
CREATE FUNCTION audit.drop_pruned_partition() RETURNS boolean
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
    WHERE h.size > h.pruned_below;
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

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA audit FROM PUBLIC;
GRANT USAGE ON SCHEMA audit TO audit_reader, audit_writer, audit_maintainer;

GRANT SELECT ON audit.tenant_events, audit.tenant_ids, audit.tenant_head, audit.tenant_counters,
    audit.tenant_subtrees, audit.tenant_kept_leaves, audit.tenant_cursors
    TO audit_reader, audit_maintainer;

GRANT INSERT ON audit.events TO audit_writer, audit_maintainer;
GRANT SELECT, INSERT ON audit.ids, audit.subtrees TO audit_writer, audit_maintainer;
GRANT SELECT, INSERT, UPDATE ON audit.counters TO audit_writer, audit_maintainer;
GRANT SELECT ON audit.heads TO audit_writer, audit_maintainer;
GRANT INSERT (tenant_id, status) ON audit.heads TO audit_writer;
GRANT UPDATE (size, peaks, created_at, changed) ON audit.heads TO audit_writer, audit_maintainer;
GRANT UPDATE (status) ON audit.heads TO audit_writer;
GRANT SELECT, INSERT ON audit.tenants TO audit_writer;
GRANT UPDATE (name) ON audit.tenants TO audit_writer;
GRANT SELECT, INSERT, UPDATE ON audit.cursors TO audit_writer;
GRANT SELECT, INSERT, UPDATE, DELETE ON audit.api_keys, audit.tickets TO audit_writer;
GRANT EXECUTE ON FUNCTION audit.make_partition(timestamptz) TO audit_writer, audit_maintainer;
GRANT EXECUTE ON FUNCTION
    audit.erase_entries(uuid, bigint[], timestamptz[], bytea[], integer[]),
    audit.prune_below(uuid, bigint, bigint, integer[], text[], text[], text[], bigint[], bigint[],
        text[], text[]),
    audit.sweep_step(bigint),
    audit.drop_pruned_partition()
    TO audit_maintainer;
