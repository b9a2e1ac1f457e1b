-- name: add_dead_letter
-- Unique by the coordinates of the record that failed: mirrored twice it is there once. One that was replayed and failed again
-- is open again; its record says which replay it was. Whose it is may be told by an import or a send it is of ($13).
INSERT INTO dead_letters AS d (topic, partition, "offset", key, value, headers, stage, kind, code, error, replays, user_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, coalesce(
  nullif($12, ''), (SELECT i.user_id FROM lead_imports i WHERE i.id = $13), (SELECT s.user_id FROM campaign_sends s WHERE s.id = $13), ''))
ON CONFLICT (topic, partition, "offset") DO UPDATE
SET state = 'open', headers = excluded.headers, stage = excluded.stage, kind = excluded.kind, code = excluded.code,
    error = excluded.error, attempts = d.attempts + 1, failed_at = now(), publish_at = NULL
WHERE d.state = 'replayed' AND d.replays = excluded.replays
RETURNING d.id

-- name: other_dead_letter
-- Whether at these coordinates there is a record with other bytes: one of them says what is not so. Of an erased one nobody knows.
SELECT EXISTS (
  SELECT FROM dead_letters d
  WHERE d.topic = $1 AND d.partition = $2 AND d."offset" = $3 AND d.state <> 'erased'
    AND (d.key IS DISTINCT FROM $4 OR d.value IS DISTINCT FROM $5))

-- name: add_failed_mails
-- In the transaction that has ended them as failed, and of no others: outcome_at is this transaction's time. The primary key of
-- email_sends; the positions once more, as in write_outcomes. A mail that was erased meanwhile has no reply, and cannot be replayed.
INSERT INTO dead_letters (user_id, state, topic, send_id, position, mail_id, stage, kind, code, error, attempts, publish_at)
SELECT m.user_id, CASE WHEN m.email = '' THEN 'erased' ELSE 'open' END, g.topic, m.send_id, m.position, m.mail_id, g.stage,
       g.kind, g.code, coalesce(m.reply, ''), m.attempts, now() + interval '30 seconds'
FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::text[])
  AS g (send_id, position, topic, stage, kind, code)
JOIN email_sends m ON m.send_id = g.send_id AND m.position = g.position
WHERE m.send_id = ANY ($1) AND m.position = ANY ($2) AND m.state = 'failed' AND m.outcome_at = now()
RETURNING id, user_id, topic, key, value, headers, send_id, position, mail_id, stage, kind, code, error, attempts, replays,
          replayed_by, partition, "offset"

-- name: letters_to_publish
-- What the broker may not have (dead_letters_to_publish). Again after 30, 60, 120 s… up to an hour, from when it failed or was replayed.
UPDATE dead_letters d
SET publish_at = now() + least(greatest(now() - coalesce(d.replayed_at, d.failed_at), interval '30 seconds'), interval '1 hour')
WHERE d.id IN (SELECT w.id FROM dead_letters w WHERE w.publish_at <= now() ORDER BY w.publish_at LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING id, user_id, topic, key, value, headers, send_id, position, mail_id, stage, kind, code, error, attempts, replays,
          replayed_by, partition, "offset"

-- name: mark_letters_published
-- The broker has them; but for records that were replayed once more meanwhile. Primary key.
UPDATE dead_letters d SET publish_at = NULL
FROM unnest($1::uuid[], $2::integer[]) AS told (id, replays)
WHERE d.id = told.id AND (d.send_id IS NOT NULL OR d.replays = told.replays)

-- name: list_dead_letters
-- A slice of a user's, newest first, before $2 ($3 of them: dead_letters_by_user), as far as it fits; the last one of the slice
-- comes in any case, to tell where to go on. Without the bytes.
WITH slice AS MATERIALIZED (
  SELECT d.id, d.state, d.topic, d.partition, d."offset", d.send_id, d.position, d.mail_id, d.stage, d.kind, d.code, d.error,
         d.attempts, d.failed_at, d.replays, d.replayed_at,
         ($5::text IS NULL OR d.topic = $5) AND ($6::text IS NULL OR d.state = $6) AS fits,
         row_number() OVER (ORDER BY d.id DESC) = $3 AS last
  FROM dead_letters d WHERE d.user_id = $1 AND ($2::uuid IS NULL OR d.id < $2) ORDER BY d.id DESC LIMIT $3
)
SELECT * FROM slice WHERE fits OR last ORDER BY id DESC LIMIT $4

-- name: read_dead_letter
-- Primary key. With the bytes.
SELECT id, state, topic, partition, "offset", send_id, position, mail_id, stage, kind, code, error, attempts, failed_at, replays,
       replayed_at, key, value
FROM dead_letters WHERE user_id = $1 AND id = $2

-- name: named_letters
-- Primary key.
SELECT id, state, topic, send_id, coalesce(octet_length(key), 0) + coalesce(octet_length(value), 0) AS bytes
FROM dead_letters WHERE user_id = $1 AND id = ANY ($2::uuid[])

-- name: replay_records
-- Open ones go to their topic again: published behind the commit, by whoever asked or by maintenance. Primary key, in one order for all.
UPDATE dead_letters d
SET state = 'replayed', replays = d.replays + 1, replayed_at = now(), replayed_by = $3, publish_at = now() + interval '30 seconds'
FROM (SELECT o.id FROM dead_letters o
      WHERE o.user_id = $1 AND o.id = ANY ($2::uuid[]) AND o.state = 'open' AND o.send_id IS NULL ORDER BY o.id FOR UPDATE) AS mine
WHERE d.id = mine.id
RETURNING d.id, d.user_id, d.topic, d.key, d.value, d.headers, d.send_id, d.position, d.mail_id, d.stage, d.kind, d.code, d.error,
          d.attempts, d.replays, d.replayed_by, d.partition, d."offset"

-- name: lock_replayed_send
-- As lock_retried_send, of any lane.
SELECT state, lane FROM campaign_sends WHERE id = $1 AND user_id = $2 FOR NO KEY UPDATE

-- name: open_positions
-- Of a send's mails, those whose dead letters are open. Behind the lock on their send nobody else retries them.
SELECT position FROM dead_letters WHERE user_id = $1 AND id = ANY ($2::uuid[]) AND send_id = $3 AND state = 'open' ORDER BY position
