-- name: create_dkim_key
-- No row: the user has $9 of them, or one of this domain and selector.
INSERT INTO dkim_keys (user_id, id, domain, selector, algorithm, canonicalization, public_key, private_key)
SELECT $1, $2, $3, $4, $5, $6, $7, $8
WHERE (SELECT count(*) FROM dkim_keys WHERE user_id = $1) < $9
ON CONFLICT (user_id, domain, selector) DO NOTHING
RETURNING *

-- name: list_dkim_keys
-- All of a user's, or the shared ones, or those of one domain ($2): there are few (dkim_keys_user_id_domain_selector_key).
SELECT * FROM dkim_keys WHERE user_id = $1 AND ($2::text IS NULL OR domain = $2) ORDER BY domain, selector

-- name: read_dkim_key
-- By the primary key.
SELECT * FROM dkim_keys WHERE user_id = $1 AND id = $2

-- name: lock_dkim_keys
-- Before one of them changes its state, in its transaction: of two that become active at once the second sees the first
-- (dkim_keys_user_id_domain_selector_key).
SELECT * FROM dkim_keys WHERE user_id = $1 AND domain = $2 ORDER BY id FOR UPDATE

-- name: activate_dkim_key
-- One that is locked. A retiring one may come back, while its record is still there.
UPDATE dkim_keys SET state = 'active', activated_at = now(), retired_at = NULL
WHERE user_id = $1 AND id = $2 AND state IN ('pending', 'retiring') RETURNING *

-- name: retire_dkim_key
-- One that is locked.
UPDATE dkim_keys SET state = 'retiring', retired_at = now()
WHERE user_id = $1 AND id = $2 AND state = 'active' RETURNING *

-- name: remove_dkim_key
-- One that never signed, or whose record has had its $3 days in DNS.
DELETE FROM dkim_keys
WHERE user_id = $1 AND id = $2
  AND (state = 'pending' OR state = 'retiring' AND retired_at <= now() - make_interval(days => $3))
RETURNING id

-- name: active_dkim_keys
-- What every worker asks every few seconds: an index of active keys alone answers it (dkim_keys_active).
SELECT id FROM dkim_keys WHERE state = 'active'

-- name: dkim_keys_by_id
-- Those that a worker does not know yet, by the primary key.
SELECT * FROM dkim_keys WHERE id = ANY ($1::uuid[]) AND state = 'active'

-- name: encrypted_dkim_keys
-- A page, by the primary key.
SELECT id, private_key FROM dkim_keys WHERE id > $1 ORDER BY id LIMIT $2

-- name: encrypt_dkim_key_again
-- It is the same key: workers need not read it again.
UPDATE dkim_keys SET private_key = $3 WHERE id = $1 AND private_key = $2 RETURNING id
