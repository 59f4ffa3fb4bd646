-- The text index: derived from the log, filled by the indexer, and rebuilt by emptying both tables.

-- A tenant's log is indexed up to `through` (exclusive). Who writes documents of a tenant holds this
-- row's lock.
CREATE TABLE audit.index_progress (
    tenant_id uuid   PRIMARY KEY,
    through   bigint NOT NULL
);

-- `words` has hashes of words, of neighbouring words and of what filters ask for, each made with the
-- tenant's id: no tenant's query can touch another's documents. `erased` has a bit for each group that
-- was gone when the document was made.
CREATE TABLE audit.index_documents (
    tenant_id   uuid        NOT NULL,
    seq         bigint      NOT NULL,
    created_at  timestamptz NOT NULL,
    occurred_at timestamptz NOT NULL,
    erased      smallint    NOT NULL,
    words       tsvector    NOT NULL,
    PRIMARY KEY (tenant_id, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);

CREATE INDEX index_documents_words ON audit.index_documents USING gin (words);

-- Plain views, as for the events: behind row security, or a view that is a security barrier, `@@` may
-- not use the index, since it isn't leakproof.
CREATE VIEW audit.tenant_index_progress AS
    SELECT through FROM audit.index_progress
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);

CREATE VIEW audit.tenant_index_documents AS
    SELECT seq, created_at, occurred_at, words FROM audit.index_documents
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);

-- What is swept from a pruned log leaves the index with it.
CREATE FUNCTION audit.forget_swept() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    DELETE FROM audit.index_documents
    WHERE tenant_id = NEW.tenant_id AND seq < NEW.swept_below;
    RETURN NULL;
END
$function$;
REVOKE ALL ON FUNCTION audit.forget_swept() FROM PUBLIC;
CREATE TRIGGER forget_swept AFTER UPDATE OF swept_below ON audit.heads
    FOR EACH ROW WHEN (NEW.swept_below > OLD.swept_below)
    EXECUTE FUNCTION audit.forget_swept();

GRANT SELECT, INSERT, UPDATE, DELETE ON audit.index_progress, audit.index_documents TO audit_writer;
GRANT SELECT ON audit.tenant_index_progress, audit.tenant_index_documents TO audit_reader;
