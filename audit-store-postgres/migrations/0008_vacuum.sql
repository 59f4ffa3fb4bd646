-- Writing tables anew, without their dead rows, for the maintainer: VACUUM FULL is the owner's alone,
-- and can't run in a function. CLUSTER of one table can, and does the same.

CREATE FUNCTION audit.tables() RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
    SELECT relname::text FROM pg_class
    WHERE relnamespace = 'audit'::regnamespace AND relkind IN ('r', 'p') ORDER BY relname;
$function$;

-- Nothing happens when there is no such table any more; of one with partitions, nothing but the last:
-- what the planner knows of the values is looked at again, since the most frequent of them stand in
-- the catalogue.
CREATE FUNCTION audit.rewrite_table(name text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    place text;
BEGIN
    SELECT i.indexrelid::regclass::text INTO place
    FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
    JOIN pg_am a ON a.oid = x.relam
    WHERE c.relnamespace = 'audit'::regnamespace AND c.relkind = 'r' AND c.relname = name
      AND i.indisvalid AND a.amname = 'btree' AND i.indpred IS NULL
    ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1;
    IF place IS NOT NULL THEN
        EXECUTE format('CLUSTER audit.%I USING %s', name, split_part(place, '.', 2));
    END IF;
    IF to_regclass(format('audit.%I', name)) IS NOT NULL THEN
        EXECUTE format('ANALYZE audit.%I', name);
    END IF;
END
$function$;

REVOKE ALL ON FUNCTION audit.tables(), audit.rewrite_table(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit.tables(), audit.rewrite_table(text) TO audit_maintainer;
