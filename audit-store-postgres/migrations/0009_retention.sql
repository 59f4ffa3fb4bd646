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

GRANT SELECT ON audit.tenant_retention, audit.tenant_legal_holds TO audit_reader, audit_maintainer;
GRANT SELECT, INSERT, UPDATE, DELETE ON audit.retention TO audit_writer;
-- A hold is never taken out: it is released.
GRANT SELECT, INSERT ON audit.legal_holds TO audit_writer;
GRANT UPDATE (released_at) ON audit.legal_holds TO audit_writer;
