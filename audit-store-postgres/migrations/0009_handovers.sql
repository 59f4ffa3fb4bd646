-- Checkpoints over a change of keys, which both keys sign, are never taken away.

ALTER TABLE audit.checkpoints ADD COLUMN handover boolean NOT NULL DEFAULT false;

CREATE OR REPLACE VIEW audit.tenant_checkpoints AS
    SELECT * FROM audit.checkpoints
    WHERE tenant_id = (SELECT nullif(current_setting('audit.tenant_id', true), '')::uuid);

CREATE OR REPLACE FUNCTION audit.thin_checkpoints(tenant uuid, newest bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    DELETE FROM audit.checkpoints AS old USING audit.checkpoints AS new
    WHERE new.tenant_id = tenant AND new.size = newest
      AND newest = (SELECT max(size) FROM audit.checkpoints WHERE tenant_id = tenant)
      AND old.tenant_id = tenant AND NOT old.handover
      AND old.size = (SELECT max(size) FROM audit.checkpoints WHERE tenant_id = tenant AND size < newest)
      AND date_trunc('hour', old.signed_at, 'UTC') = date_trunc('hour', new.signed_at, 'UTC');
$function$;
