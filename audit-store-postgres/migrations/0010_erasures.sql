-- Erasures that were asked for, and by what events that are appended late are known to be their
-- subject.

-- `selection` is forgotten when the erasure is done: it names whom it is about.
CREATE TABLE audit.erasures (
    id           uuid        PRIMARY KEY,
    tenant_id    uuid        NOT NULL,
    selection    text        COLLATE "C",
    groups       text        COLLATE "C" NOT NULL,
    basis        text        COLLATE "C" NOT NULL,
    subject      text        COLLATE "C" NOT NULL,
    reason       text        COLLATE "C",
    requested_at timestamptz NOT NULL,
    below        bigint      NOT NULL,
    next         bigint      NOT NULL,
    end_at       bigint      NOT NULL,
    entries      bigint      NOT NULL,
    done         boolean     NOT NULL,
    last_error   text        COLLATE "C"
);
CREATE INDEX erasures_open ON audit.erasures (tenant_id, id) WHERE NOT done;

-- Keyed hashes of ids and users.
CREATE TABLE audit.erasure_marks (
    tenant_id    uuid        NOT NULL,
    mark         bytea       NOT NULL,
    erasure      uuid        NOT NULL,
    requested_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, mark, erasure)
);

CREATE VIEW audit.tenant_erasures AS
    SELECT * FROM audit.erasures
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);

GRANT SELECT ON audit.tenant_erasures TO audit_reader;
GRANT SELECT, INSERT, UPDATE ON audit.erasures TO audit_maintainer;
GRANT SELECT, INSERT, DELETE ON audit.erasure_marks TO audit_maintainer;
