-- Whether the guard knew of a checkpoint before it was kept; it didn't know of this log at first.
ALTER TABLE audit.deployment_checkpoints ADD COLUMN guarded boolean NOT NULL DEFAULT false;
