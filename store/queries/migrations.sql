-- name: create_schema_migrations
CREATE TABLE IF NOT EXISTS schema_migrations (
  number      integer PRIMARY KEY,
  name        text NOT NULL,
  checksum    text NOT NULL,
  applied_at  timestamptz NOT NULL DEFAULT now()
)

-- name: applied_migrations
SELECT number, checksum FROM schema_migrations

-- name: record_migration
INSERT INTO schema_migrations (number, name, checksum) VALUES ($1, $2, $3)

-- name: partition_exists
SELECT to_regclass($1) IS NOT NULL
