-- name: start_progress
-- Tells whoever shows progress live, as each statement here does that changes a state, a total or an end.
WITH started AS (
  INSERT INTO progress_tracking (operation_id, user_id, kind, state, started_at) VALUES ($1, $2, $3, $4, now())
  ON CONFLICT (operation_id) DO NOTHING RETURNING user_id, operation_id
)
SELECT pg_notify('progress', user_id || E'\n' || operation_id) FROM started

-- name: reopen_progress
-- Primary key. An operation goes on after its end; its row may have been deleted since.
WITH reopened AS (
  INSERT INTO progress_tracking AS p (operation_id, user_id, kind, state, started_at) VALUES ($1, $2, $3, $4, now())
  ON CONFLICT (operation_id) DO UPDATE SET state = excluded.state, ended_at = NULL, updated_at = now()
  WHERE p.user_id = excluded.user_id RETURNING user_id, operation_id
)
SELECT pg_notify('progress', user_id || E'\n' || operation_id) FROM reopened

-- name: move_progress
-- An operation has come to another state; $3 is its total where that is known now.
WITH moved AS (
  UPDATE progress_tracking SET state = $2, total = coalesce($3, total), updated_at = now()
  WHERE operation_id = $1 AND ended_at IS NULL RETURNING user_id, operation_id
)
SELECT pg_notify('progress', user_id || E'\n' || operation_id) FROM moved

-- name: intake_ends
-- Ends that recipients came to before any batch. For the progress worker, which has no user of its own.
SELECT id, suppressed, duplicate, invalid FROM campaign_sends WHERE id = ANY ($1::uuid[])

-- name: write_progress
-- From the progress worker, while an operation is under way: never over an end.
UPDATE progress_tracking p SET counts = u.counts::jsonb, updated_at = now()
FROM unnest($1::uuid[], $2::text[]) AS u (operation_id, counts) WHERE p.operation_id = u.operation_id AND p.ended_at IS NULL

-- name: settle_progress
-- What the sums over batch rows say, which is what counts. An end is written once.
WITH settled AS (
  UPDATE progress_tracking
  SET state = $3, total = $4, counts = $5::jsonb, updated_at = now(), ended_at = CASE WHEN $6 THEN now() END
  WHERE operation_id = $1 AND user_id = $2 RETURNING user_id, operation_id
)
SELECT pg_notify('progress', user_id || E'\n' || operation_id) FROM settled

-- name: read_progress
SELECT operation_id, user_id, kind, state, total, counts, started_at, updated_at, ended_at
FROM progress_tracking WHERE operation_id = $1 AND user_id = $2

-- name: list_progress
-- Newest first by the index on (user_id, operation_id); $2 is the last id of the page before, or null. $4, $5 and $6 are what
-- it has to be, or null: its kind, its state, whether it is under way.
SELECT operation_id, user_id, kind, state, total, counts, started_at, updated_at, ended_at
FROM progress_tracking WHERE user_id = $1 AND ($2::uuid IS NULL OR operation_id < $2)
  AND ($4::text IS NULL OR kind = $4) AND ($5::text IS NULL OR state = $5)
  AND ($6::boolean IS NULL OR (ended_at IS NULL) = $6)
ORDER BY operation_id DESC LIMIT $3

-- name: read_operations
-- Primary key. Several, each of one of these users.
SELECT operation_id, user_id, kind, state, total, counts, started_at, updated_at, ended_at
FROM progress_tracking WHERE operation_id = ANY ($1::uuid[]) AND user_id = ANY ($2::text[])

-- name: open_operations
-- All that are under way, of users that somebody listens to (progress_tracking_open).
SELECT operation_id, user_id, kind, state, total, counts, started_at, updated_at, ended_at
FROM progress_tracking WHERE user_id = ANY ($1::text[]) AND ended_at IS NULL

-- name: operations_ended_since
-- For a listener that comes back (progress_tracking_ended).
SELECT operation_id, user_id, kind, state, total, counts, started_at, updated_at, ended_at
FROM progress_tracking WHERE user_id = $1 AND ended_at > $2 ORDER BY ended_at DESC LIMIT $3

-- name: delete_progress
-- Of operations that have ended only.
DELETE FROM progress_tracking WHERE operation_id = $1 AND user_id = $2 AND ended_at IS NOT NULL RETURNING operation_id

-- name: operations_to_compare
-- A page of what is under way, of all users, in the order of progress_tracking_open; behind $1 and $2.
SELECT operation_id, user_id, kind, counts FROM progress_tracking
WHERE ended_at IS NULL AND (user_id, operation_id) > ($1, $2) ORDER BY user_id, operation_id LIMIT $3

-- name: send_blocks
-- Sums over the batches of sends, by blocks of $2 batches: those that were told half a minute ago, so that whoever counts
-- them has them (campaign_send_batches_send_id_number_key).
SELECT b.send_id AS operation_id, b.number / $2 AS block, count(*) AS batches, sum(b.sent) AS sent, sum(b.bounced) AS bounced,
       sum(b.failed) AS failed, sum(b.unknown) AS unknown, sum(b.suppressed) AS suppressed, sum(b.cancelled) AS cancelled,
       sum(b.deferred) AS deferred, coalesce(sum(cardinality(b.positions)), 0) AS retried
FROM campaign_send_batches b
WHERE b.send_id = ANY ($1::uuid[]) AND b.state = 'done' AND b.announced_at < now() - interval '30 seconds'
GROUP BY b.send_id, b.number / $2

-- name: import_blocks
-- As send_blocks, of imports (primary key).
SELECT b.import_id AS operation_id, b.number / $2 AS block, count(*) AS batches, sum(b.stored) AS stored,
       sum(b.duplicate) AS duplicate, sum(b.rejected) AS rejected,
       coalesce(sum(b.rows) FILTER (WHERE b.state = 'dead'), 0) AS dead
FROM lead_import_batches b
WHERE b.import_id = ANY ($1::uuid[]) AND b.done_at IS NOT NULL AND b.announced_at < now() - interval '30 seconds'
GROUP BY b.import_id, b.number / $2

-- name: batches_of_block
-- Those that send_blocks has summed, one by one, from $2 to before $3.
SELECT b.id, b.send_id, b.user_id, b.number, b.sent, b.bounced, b.failed, b.unknown, b.suppressed, b.cancelled, b.deferred,
       coalesce(cardinality(b.positions), 0) AS retried, 'campaign' AS lane
FROM campaign_send_batches b
WHERE b.send_id = $1 AND b.number >= $2 AND b.number < $3 AND b.state = 'done'
  AND b.announced_at < now() - interval '30 seconds'

-- name: chunks_of_block
-- Those that import_blocks has summed, one by one, from $2 to before $3.
SELECT b.import_id, b.number, i.user_id, b.first_row, b.rows, b.state, b.stored, b.duplicate, b.rejected
FROM lead_import_batches b JOIN lead_imports i ON i.id = b.import_id
WHERE b.import_id = $1 AND b.number >= $2 AND b.number < $3 AND b.done_at IS NOT NULL
  AND b.announced_at < now() - interval '30 seconds'

-- name: ended_unsettled
-- Operations that have ended while their progress has not.
SELECT p.operation_id, p.user_id, p.kind FROM progress_tracking p WHERE p.ended_at IS NULL AND (
  EXISTS (SELECT FROM lead_imports i WHERE i.id = p.operation_id AND i.ended_at IS NOT NULL) OR
  EXISTS (SELECT FROM campaign_sends s WHERE s.id = p.operation_id AND s.ended_at IS NOT NULL))
LIMIT $1
