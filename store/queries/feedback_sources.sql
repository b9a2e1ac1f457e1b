-- name: create_source
-- No row: the user has one of this name, or $4 of them.
INSERT INTO feedback_sources (user_id, id, name)
SELECT $1, $2, $3 WHERE (SELECT count(*) FROM feedback_sources WHERE user_id = $1) < $4
ON CONFLICT (user_id, name) DO NOTHING
RETURNING id, user_id, name, created_at

-- name: list_sources
-- All of a user's, or those for everybody: there are few (feedback_sources_user_id_name_key).
SELECT id, user_id, name, created_at FROM feedback_sources WHERE user_id = $1 ORDER BY name

-- name: find_source
-- By the unique key.
SELECT id, user_id, name, created_at FROM feedback_sources WHERE user_id = $1 AND name = $2

-- name: lock_source
-- Before its secrets change, in that transaction: two rotations at once would each end the other's secret.
SELECT id, user_id, name, created_at FROM feedback_sources WHERE user_id = $1 AND name = $2 FOR UPDATE

-- name: remove_source
-- With its secrets.
DELETE FROM feedback_sources WHERE user_id = $1 AND name = $2 RETURNING id

-- name: read_source
-- By the id in the path that it posts to: what it signs with tells whether it is who it says (primary key).
SELECT id, user_id, name, created_at FROM feedback_sources WHERE id = $1

-- name: living_secrets
-- Of sources, the newest first (feedback_secrets_of_source).
SELECT source_id, id, secret, created_at, ends_at FROM feedback_secrets
WHERE source_id = ANY ($1::uuid[]) AND (ends_at IS NULL OR ends_at > now()) ORDER BY source_id, id DESC

-- name: add_secret
INSERT INTO feedback_secrets (id, source_id, secret) VALUES ($1, $2, $3)

-- name: end_secrets
-- In $2 seconds, or when they would anyhow; those that have ended go (feedback_secrets_of_source).
WITH gone AS (DELETE FROM feedback_secrets WHERE source_id = $1 AND ends_at <= now())
UPDATE feedback_secrets SET ends_at = least(ends_at, now() + make_interval(secs => $2))
WHERE source_id = $1 AND (ends_at IS NULL OR ends_at > now())

-- name: encrypted_secrets
-- A page of them, by the primary key.
SELECT id, secret FROM feedback_secrets WHERE id > $1 ORDER BY id LIMIT $2

-- name: encrypt_secret_again
-- Unless somebody changed it meanwhile.
UPDATE feedback_secrets SET secret = $3 WHERE id = $1 AND secret = $2 RETURNING id
