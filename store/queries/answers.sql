-- name: begin_answer
-- Primary key. Whoever comes second with a key waits here until the first has ended, and finds what it left: its answer, or
-- nothing, where it was undone.
INSERT INTO answers AS a (user_id, idempotency_key, request_hash, status, body) VALUES ($1, $2, $3, 0, '')
ON CONFLICT (user_id, idempotency_key) DO UPDATE SET idempotency_key = a.idempotency_key
RETURNING a.request_hash, a.status, a.body, a.created_at

-- name: keep_answer
-- Primary key. Behind begin_answer, in the same transaction.
UPDATE answers SET status = $3, body = $4 WHERE user_id = $1 AND idempotency_key = $2

-- name: forget_answers
-- Of more than a week ago, a page (answers_by_age).
DELETE FROM answers WHERE (user_id, idempotency_key) IN (
  SELECT user_id, idempotency_key FROM answers WHERE created_at < now() - interval '7 days' ORDER BY created_at LIMIT $1
)
RETURNING user_id
