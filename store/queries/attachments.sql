-- name: add_attachment
-- The same bytes again are the same attachment, by the unique index on (user_id, sha256): what it was called first stays.
INSERT INTO attachments AS a (id, user_id, sha256, filename, content_type, size, data)
VALUES ($1, $2, $3, $4, $5, length($6::bytea), $6)
ON CONFLICT (user_id, sha256) DO UPDATE SET used_at = now()
RETURNING a.id, a.filename, a.content_type, a.size, a.sha256, a.created_at

-- name: list_attachments
-- Newest first, by attachments_of_user.
SELECT id, filename, content_type, size, sha256, created_at FROM attachments
WHERE user_id = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3

-- name: find_attachment
-- Primary key.
SELECT id, filename, content_type, size, sha256, created_at FROM attachments WHERE id = $1 AND user_id = $2

-- name: lock_attachment
-- Primary key. Until the transaction ends no send can begin to use it: use_attachments waits.
SELECT id, filename, content_type, size, sha256, created_at FROM attachments WHERE id = $1 AND user_id = $2 FOR UPDATE

-- name: attachment_in_use
-- The caller has locked it (attachment_uses_of_attachment). A send that broke off may be completed for a week.
SELECT EXISTS (SELECT FROM attachment_uses u JOIN campaign_sends s ON s.id = u.send_id
               WHERE u.attachment_id = $1 AND s.user_id = $2
                 AND (s.state IN ('receiving', 'running', 'paused')
                      OR s.state = 'incomplete' AND s.ended_at > now() - interval '7 days'))

-- name: remove_attachment
-- Primary key; that it was used goes with it.
DELETE FROM attachments WHERE id = $1 AND user_id = $2

-- name: named_attachments
-- Of those that a request names, what is there (primary key), and whether it is time to note that they were used.
SELECT id, size, used_at < now() - interval '1 hour' AS stale FROM attachments WHERE user_id = $1 AND id = ANY ($2::uuid[])

-- name: touch_attachments
-- In the order of their ids, so that two requests wait for one another at most. Primary key.
UPDATE attachments a SET used_at = now()
FROM (SELECT id FROM attachments WHERE user_id = $1 AND id = ANY ($2::uuid[]) ORDER BY id FOR NO KEY UPDATE) AS named
WHERE a.id = named.id

-- name: use_attachments
-- Notes which sends use which attachments, of their own users. Locked, so that one that is being removed is gone or stays. Primary keys.
WITH found AS (
  SELECT u.send_id, a.id
  FROM unnest($1::uuid[], $2::text[], $3::uuid[]) AS u (send_id, user_id, attachment_id)
  JOIN attachments a ON a.id = u.attachment_id AND a.user_id = u.user_id
  ORDER BY a.id FOR KEY SHARE OF a
), noted AS (
  INSERT INTO attachment_uses (send_id, attachment_id) SELECT DISTINCT send_id, id FROM found ORDER BY id, send_id
  ON CONFLICT DO NOTHING
)
SELECT DISTINCT id FROM found

-- name: read_attachments
-- With their bytes. Primary key.
SELECT id, filename, content_type, data FROM attachments WHERE user_id = $1 AND id = ANY ($2::uuid[])

-- name: forget_attachments
-- A page of those that no request has named for 30 days (attachments_by_use) and no send uses that has not ended, or ended since
-- (attachment_uses_of_attachment). One that is being used right now is locked, or has been named a moment before.
DELETE FROM attachments WHERE id IN (
  SELECT a.id FROM attachments a
  WHERE a.used_at < now() - interval '30 days' AND NOT EXISTS (
    SELECT FROM attachment_uses u JOIN campaign_sends s ON s.id = u.send_id
    WHERE u.attachment_id = a.id AND (s.ended_at IS NULL OR s.ended_at > now() - interval '30 days'))
  ORDER BY a.used_at LIMIT $1 FOR UPDATE OF a SKIP LOCKED
)
RETURNING id
