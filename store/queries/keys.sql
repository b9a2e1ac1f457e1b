-- name: create_key
INSERT INTO api_keys (name, scope, user_id, key_hash, expires_at) VALUES ($1, $2, $3, $4, $5)
RETURNING id, name, scope, user_id, created_at, expires_at, revoked_at

-- name: find_key
-- By the unique hash, before every request: who asks is not known yet.
SELECT id, scope, user_id FROM api_keys
WHERE key_hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())

-- name: list_keys
-- Newest first, of one user or of all; with $2 those of all scopes, else the users' alone. There are few, by the primary key.
SELECT id, name, scope, user_id, created_at, expires_at, revoked_at FROM api_keys
WHERE ($1::text IS NULL OR user_id = $1) AND (scope = 'user' OR $2) AND ($3::uuid IS NULL OR id < $3)
ORDER BY id DESC LIMIT $4

-- name: revoke_key
-- Primary key. With $2 of any scope, else a user's alone. One that was revoked before stays as it is.
UPDATE api_keys SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1 AND (scope = 'user' OR $2)
RETURNING id, name, scope, user_id, created_at, expires_at, revoked_at
