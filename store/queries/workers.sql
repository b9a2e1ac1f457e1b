-- name: start_worker
INSERT INTO workers (id, kind, host, pid) VALUES ($1, $2, $3, $4)

-- name: heartbeat
-- No row: this incarnation has been fenced.
UPDATE workers SET heartbeat_at = now() WHERE id = $1 AND fenced_at IS NULL RETURNING id

-- name: stop_worker
UPDATE workers SET stopped_at = now() WHERE id = $1

-- name: fence_silent_workers
-- Silent for $1 seconds. Stopped ones with batches in hand count too: their return did not succeed.
UPDATE workers w SET fenced_at = now()
WHERE w.fenced_at IS NULL AND w.heartbeat_at < now() - make_interval(secs => $1)
  AND (w.stopped_at IS NULL OR EXISTS (
    SELECT FROM campaign_send_batches b WHERE b.worker = w.id AND b.state = 'claimed'))
RETURNING w.id

-- name: doubtful_mails
-- Rows a fenced worker had marked as tried, of sends that must not send twice, become unknown; counted on their batch.
WITH held AS (
  SELECT b.id, b.send_id, b.first_position, b.end_position, b.positions
  FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
  WHERE b.worker = ANY ($1::uuid[]) AND b.state = 'claimed' AND s.on_doubt = 'skip' FOR UPDATE OF b
), ended AS (
  UPDATE email_sends m SET state = 'unknown', outcome_at = now(), reply = 'the worker that was sending this mail died'
  FROM held
  WHERE m.send_id = held.send_id AND m.position >= held.first_position AND m.position < held.end_position
    AND (held.positions IS NULL OR m.position = ANY (held.positions)) AND m.tried AND m.state = 'queued'
  RETURNING held.id
)
UPDATE campaign_send_batches b SET unknown = b.unknown + e.mails
FROM (SELECT id, count(*)::integer AS mails FROM ended GROUP BY id) AS e WHERE b.id = e.id

-- name: rescue_batches
-- What a fenced worker held goes back to release (campaign_send_batches_claimed).
WITH freed AS (
  UPDATE campaign_send_batches b SET state = 'returned'
  WHERE b.worker = ANY ($1::uuid[]) AND b.state = 'claimed' RETURNING b.id, b.user_id
), woken AS (
  UPDATE release_users r SET due_at = now(), wakes = r.wakes + 1 FROM (SELECT DISTINCT user_id FROM freed) AS u
  WHERE r.user_id = u.user_id
)
SELECT id FROM freed
