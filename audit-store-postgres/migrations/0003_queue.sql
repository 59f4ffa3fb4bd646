-- The durable queue.

-- `ready_at` is when a message may be received: when it was sent, or when its lease or its delay
-- ends. `lapses` counts leases that ran out without a word from who held them. Numbers are never used
-- again, so that an old handle can't name a later message.
CREATE TABLE audit.queue_messages (
    n         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id uuid        NOT NULL,
    kind      text        NOT NULL,
    id        uuid        NOT NULL,
    ready_at  timestamptz NOT NULL,
    leased    boolean     NOT NULL DEFAULT false,
    attempts  integer     NOT NULL DEFAULT 0,
    lapses    integer     NOT NULL DEFAULT 0,
    body      text        NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);

CREATE INDEX queue_messages_ready ON audit.queue_messages (ready_at, n);

CREATE TABLE audit.queue_dead_letters (
    n         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id uuid        NOT NULL,
    kind      text        NOT NULL,
    id        uuid        NOT NULL,
    died_at   timestamptz NOT NULL,
    reason    text        NOT NULL,
    body      text        NOT NULL
);

GRANT SELECT, INSERT, UPDATE, DELETE ON audit.queue_messages, audit.queue_dead_letters
    TO audit_writer;
