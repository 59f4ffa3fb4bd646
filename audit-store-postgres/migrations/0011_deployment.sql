-- The log over all tenants' heads, which only grows: whoever signs adds to it, and can neither change nor
-- remove anything. What a leaf commits to is its tenant's to read; the commitments, hashes and checkpoints
-- are no tenant's and tell nothing of one.

CREATE TABLE audit.deployment_leaves (
    idx        bigint PRIMARY KEY,
    tenant_id  uuid   NOT NULL,
    size       bigint NOT NULL,
    root       bytea  NOT NULL,
    salt       bytea  NOT NULL,
    commitment bytea  NOT NULL
);
-- A tenant's last leaf has its largest size. An index with idx behind the tenant would have a rival in the
-- primary key, which walks over all tenants' leaves to find one of an idle tenant.
CREATE INDEX deployment_leaves_tenant ON audit.deployment_leaves (tenant_id, size, idx);

-- Hashes of complete subtrees of 256^level leaves.
CREATE TABLE audit.deployment_hashes (
    level smallint NOT NULL,
    idx   bigint   NOT NULL,
    hash  bytea    NOT NULL,
    PRIMARY KEY (level, idx)
);

CREATE TABLE audit.deployment_checkpoints (
    n         bigint      GENERATED ALWAYS AS IDENTITY,
    size      bigint      NOT NULL,
    root      bytea       NOT NULL,
    note      text        COLLATE "C" NOT NULL,
    signed_at timestamptz NOT NULL,
    PRIMARY KEY (size, n)
);

CREATE VIEW audit.tenant_deployment_leaves AS
    SELECT idx, tenant_id, size, root, salt FROM audit.deployment_leaves
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);
CREATE VIEW audit.deployment_commitments AS
    SELECT idx, commitment FROM audit.deployment_leaves;

GRANT SELECT ON audit.tenant_deployment_leaves TO audit_reader;
GRANT SELECT ON audit.deployment_commitments, audit.deployment_hashes, audit.deployment_checkpoints
    TO audit_reader;
-- Not the salts: with one and a guess, a commitment is opened.
GRANT INSERT, SELECT (idx, tenant_id, size) ON audit.deployment_leaves TO audit_writer;
GRANT INSERT, SELECT ON audit.deployment_hashes, audit.deployment_checkpoints TO audit_writer;
