-- What the logs' `epoch` entries say, written with them.
CREATE TABLE audit.epochs (
    tenant_id uuid   NOT NULL,
    seq       bigint NOT NULL,
    epoch     bigint NOT NULL,
    PRIMARY KEY (tenant_id, seq)
);
CREATE VIEW audit.tenant_epochs AS
    SELECT * FROM audit.epochs
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);
GRANT SELECT ON audit.tenant_epochs TO audit_reader, audit_maintainer;
GRANT INSERT ON audit.epochs TO audit_writer;
