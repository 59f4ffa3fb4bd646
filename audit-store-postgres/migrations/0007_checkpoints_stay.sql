-- The signer adds checkpoints and can neither change nor remove one by itself: of an hour the largest
-- stays, and this function, which is the owner's, makes it so. It takes a checkpoint away only behind a larger
-- one that was signed in the same UTC hour and is the tenant's largest.

CREATE FUNCTION audit.thin_checkpoints(tenant uuid, newest bigint) RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    DELETE FROM audit.checkpoints AS old USING audit.checkpoints AS new
    WHERE new.tenant_id = tenant AND new.size = newest
      AND newest = (SELECT max(size) FROM audit.checkpoints WHERE tenant_id = tenant)
      AND old.tenant_id = tenant
      AND old.size = (SELECT max(size) FROM audit.checkpoints WHERE tenant_id = tenant AND size < newest)
      AND date_trunc('hour', old.signed_at, 'UTC') = date_trunc('hour', new.signed_at, 'UTC');
$function$;
REVOKE ALL ON FUNCTION audit.thin_checkpoints(uuid, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit.thin_checkpoints(uuid, bigint) TO audit_writer;

REVOKE DELETE ON audit.checkpoints FROM audit_writer;
