-- Whether everyone may read a tenant's checkpoints, key and tiles.
ALTER TABLE audit.tenants ADD COLUMN public_log boolean NOT NULL DEFAULT false;
GRANT UPDATE (public_log) ON audit.tenants TO audit_writer;
