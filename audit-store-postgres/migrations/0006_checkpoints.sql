-- Signed checkpoints, and who signs.

CREATE TABLE audit.checkpoints (
    tenant_id uuid        NOT NULL,
    size      bigint      NOT NULL,
    root      bytea       NOT NULL,
    note      text        COLLATE "C" NOT NULL,
    signed_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, size)
);

-- One row once somebody signs. The fence counts the holders.
CREATE TABLE audit.signer (
    one    boolean     PRIMARY KEY DEFAULT true CHECK (one),
    holder text        COLLATE "C" NOT NULL,
    fence  bigint      NOT NULL,
    until  timestamptz NOT NULL
);

CREATE VIEW audit.tenant_checkpoints AS
    SELECT * FROM audit.checkpoints
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);

GRANT SELECT ON audit.tenant_checkpoints TO audit_reader, audit_maintainer;
GRANT SELECT, INSERT, DELETE ON audit.checkpoints TO audit_writer;
GRANT SELECT, INSERT, UPDATE ON audit.signer TO audit_writer;
