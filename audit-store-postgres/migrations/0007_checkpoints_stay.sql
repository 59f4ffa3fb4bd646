-- The signer adds checkpoints and can neither change nor remove one by itself. Of an hour the largest
-- stays, and a function, which is the owner's, makes it so. It takes a checkpoint away only behind a
-- larger one that was signed in the same UTC hour and is the tenant's largest; none over a change of
-- keys, which both keys sign, and none that was published more than two hours ago, whatever time its
-- signer says. When that was, only the database writes.

ALTER TABLE audit.checkpoints
    ADD COLUMN handover boolean NOT NULL DEFAULT false,
    ADD COLUMN published_at timestamptz NOT NULL DEFAULT clock_timestamp();
REVOKE INSERT, DELETE ON audit.checkpoints FROM audit_writer;
GRANT INSERT (tenant_id, size, root, note, signed_at, handover) ON audit.checkpoints TO audit_writer;

CREATE OR REPLACE VIEW audit.tenant_checkpoints AS
    SELECT * FROM audit.checkpoints
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);

CREATE FUNCTION audit.thin_checkpoints(tenant uuid, newest bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    DELETE FROM audit.checkpoints AS old USING audit.checkpoints AS new
    WHERE new.tenant_id = tenant AND new.size = newest
      AND newest = (SELECT max(size) FROM audit.checkpoints WHERE tenant_id = tenant)
      AND old.tenant_id = tenant AND NOT old.handover
      AND old.published_at > clock_timestamp() - interval '2 hours'
      AND old.size = (SELECT max(size) FROM audit.checkpoints WHERE tenant_id = tenant AND size < newest)
      AND date_trunc('hour', old.signed_at, 'UTC') = date_trunc('hour', new.signed_at, 'UTC');
$function$;
REVOKE ALL ON FUNCTION audit.thin_checkpoints(uuid, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit.thin_checkpoints(uuid, bigint) TO audit_writer;

-- What the logs' `key` entries say, written with them.
CREATE TABLE audit.key_changes (
    tenant_id uuid   NOT NULL,
    seq       bigint NOT NULL,
    old_vkey  text   COLLATE "C" NOT NULL,
    new_vkey  text   COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, seq)
);
CREATE VIEW audit.tenant_key_changes AS
    SELECT * FROM audit.key_changes
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);
GRANT SELECT ON audit.tenant_key_changes TO audit_reader, audit_maintainer;
GRANT INSERT ON audit.key_changes TO audit_writer;
