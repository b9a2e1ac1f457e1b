-- name: start_progress
INSERT INTO progress_tracking (operation_id, user_id, kind, state, started_at) VALUES ($1, $2, $3, $4, now())
ON CONFLICT (operation_id) DO NOTHING

-- name: reopen_progress
-- Primary key. An operation goes on after its end; its row may have been deleted since.
INSERT INTO progress_tracking AS p (operation_id, user_id, kind, state, started_at) VALUES ($1, $2, $3, $4, now())
ON CONFLICT (operation_id) DO UPDATE SET state = excluded.state, ended_at = NULL, updated_at = now()
WHERE p.user_id = excluded.user_id

-- name: move_progress
-- An operation has come to another state; $3 is its total where that is known now.
UPDATE progress_tracking SET state = $2, total = coalesce($3, total), updated_at = now()
WHERE operation_id = $1 AND ended_at IS NULL

-- name: intake_ends
-- Ends that recipients came to before any batch. For the progress worker, which has no user of its own.
SELECT id, suppressed, duplicate, invalid FROM campaign_sends WHERE id = ANY ($1::uuid[])

-- name: write_progress
-- From the progress worker, while an operation is under way: never over an end.
UPDATE progress_tracking p SET counts = u.counts::jsonb, updated_at = now()
FROM unnest($1::uuid[], $2::text[]) AS u (operation_id, counts) WHERE p.operation_id = u.operation_id AND p.ended_at IS NULL

-- name: settle_progress
-- What the sums over batch rows say, which is what counts. An end is written once.
UPDATE progress_tracking
SET state = $3, total = $4, counts = $5::jsonb, updated_at = now(), ended_at = CASE WHEN $6 THEN now() END
WHERE operation_id = $1 AND user_id = $2

-- name: read_progress
SELECT operation_id, user_id, kind, state, total, counts, started_at, updated_at, ended_at
FROM progress_tracking WHERE operation_id = $1 AND user_id = $2

-- name: list_progress
-- Newest first by the index on (user_id, operation_id); $2 is the last id of the page before, or null.
SELECT operation_id, user_id, kind, state, total, counts, started_at, updated_at, ended_at
FROM progress_tracking WHERE user_id = $1 AND ($2::uuid IS NULL OR operation_id < $2)
ORDER BY operation_id DESC LIMIT $3

-- name: delete_progress
-- Of operations that have ended only.
DELETE FROM progress_tracking WHERE operation_id = $1 AND user_id = $2 AND ended_at IS NOT NULL RETURNING operation_id

-- name: ended_unsettled
-- Operations that have ended while their progress has not.
SELECT p.operation_id, p.user_id, p.kind FROM progress_tracking p WHERE p.ended_at IS NULL AND (
  EXISTS (SELECT FROM lead_imports i WHERE i.id = p.operation_id AND i.ended_at IS NOT NULL) OR
  EXISTS (SELECT FROM campaign_sends s WHERE s.id = p.operation_id AND s.ended_at IS NOT NULL))
LIMIT $1
