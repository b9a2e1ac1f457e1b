-- name: mail_of_link
-- The mail that a signed link names, whoever's it is: the signature stands for the user's id (primary keys). What was erased has
-- no address. `by_link`: whether a link suppressed the address, so that a link can undo it; null: it is not suppressed.
SELECT m.user_id, m.recipient_id, m.email, m.email_key, coalesce(m.content->'sender', s.sender)->>'name' AS sender_name,
       coalesce(m.content->'sender', s.sender)->>'email' AS sender,
       x.reason = 'unsubscribe' AND starts_with(x.source, 'unsubscribed from ') AS by_link
FROM email_sends m JOIN campaign_sends s ON s.id = m.send_id
LEFT JOIN suppressions x ON x.user_id = m.user_id AND x.email_key = m.email_key
WHERE m.send_id = $1 AND m.position = $2

-- name: undo_unsubscribe
-- What a link did, and nothing else: neither what the user said nor a bounce or a complaint. Primary key.
DELETE FROM suppressions
WHERE user_id = $1 AND email_key = $2 AND reason = 'unsubscribe' AND starts_with(source, 'unsubscribed from ')
RETURNING email_key

-- name: add_unsubscribe
-- In the transaction that did it.
INSERT INTO unsubscribes (user_id, send_id, position, event) VALUES ($1, $2, $3, $4)

-- name: unannounced_unsubscribes
-- The oldest first (unsubscribes_unannounced); with what the mail's rows still say of it (primary keys).
SELECT u.id, u.user_id, u.send_id, u.position, u.event, u.happened_at, m.recipient_id, s.campaign_id
FROM unsubscribes u
LEFT JOIN campaign_sends s ON s.id = u.send_id
LEFT JOIN email_sends m ON m.send_id = u.send_id AND m.position = u.position
WHERE u.announced_at IS NULL ORDER BY u.id LIMIT $1

-- name: mark_unsubscribes_announced
UPDATE unsubscribes SET announced_at = now() WHERE id = ANY ($1::uuid[])
