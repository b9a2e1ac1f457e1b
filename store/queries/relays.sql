-- name: create_relay
-- No row: the user has one of this name, or $16 of them.
INSERT INTO relays (user_id, id, name, host, port, tls, verify, ca, username, password, weight, connections,
                    mails_per_connection, max_age, enabled)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15
WHERE (SELECT count(*) FROM relays WHERE user_id = $1) < $16
ON CONFLICT (user_id, name) DO NOTHING
RETURNING *

-- name: list_relays
-- All of a user's, or the shared ones: there are few (relays_user_id_name_key).
SELECT * FROM relays WHERE user_id = $1 ORDER BY name

-- name: read_relay
-- By the unique key.
SELECT * FROM relays WHERE user_id = $1 AND name = $2

-- name: lock_relay
-- Before a change, in its transaction: two changes at once must not undo one another.
SELECT * FROM relays WHERE user_id = $1 AND name = $2 FOR UPDATE

-- name: change_relay
UPDATE relays SET host = $3, port = $4, tls = $5, verify = $6, ca = $7, username = $8, password = $9, weight = $10,
  connections = $11, mails_per_connection = $12, max_age = $13, enabled = $14, updated_at = now()
WHERE user_id = $1 AND id = $2 RETURNING *

-- name: remove_relay
DELETE FROM relays WHERE user_id = $1 AND name = $2 RETURNING id

-- name: sends_naming_relay
-- Active sends that would have no relay without this one; of a shared one those of all users who have none of their own by that
-- name. By the index of active sends (campaign_sends_active), which are few.
SELECT count(*)::integer FROM campaign_sends s
WHERE s.relay = $2 AND s.lane = 'campaign' AND s.state IN ('receiving', 'running', 'paused')
  AND (s.user_id = $1 OR $1 = '' AND NOT EXISTS (SELECT FROM relays r WHERE r.user_id = s.user_id AND r.name = $2 AND r.enabled))

-- name: relay_names
-- What a send of this user may name (relays_user_id_name_key).
SELECT r.user_id, r.name, r.enabled FROM relays r WHERE r.user_id IN ($1, '') ORDER BY r.user_id, r.name

-- name: relays_of_users
-- What a worker needs to know, every few seconds, of the users it sends for; disabled ones too: where there are shared rows, the
-- relay of the settings is not used (relays_user_id_name_key).
SELECT * FROM relays WHERE user_id = ANY ($1::text[])

-- name: encrypted_relays
-- A page of those with a password, by the primary key.
SELECT id, password FROM relays WHERE id > $1 AND password IS NOT NULL ORDER BY id LIMIT $2

-- name: encrypt_relay_again
-- Unless somebody changed it meanwhile. Workers keep their connections: the password is the same.
UPDATE relays SET password = $3 WHERE id = $1 AND password = $2 RETURNING id
