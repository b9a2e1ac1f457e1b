-- name: create_key
INSERT INTO api_keys (name, scope, user_id, key_hash) VALUES ($1, $2, $3, $4) RETURNING id

-- name: find_key
-- By the unique hash, before every request: who asks is not known yet.
SELECT id, scope, user_id FROM api_keys
WHERE key_hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
