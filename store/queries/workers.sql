-- name: start_worker
INSERT INTO workers (id, kind, host, pid) VALUES ($1, $2, $3, $4)

-- name: heartbeat
-- No row: this incarnation has been fenced.
UPDATE workers SET heartbeat_at = now() WHERE id = $1 AND fenced_at IS NULL RETURNING id

-- name: stop_worker
UPDATE workers SET stopped_at = now() WHERE id = $1

-- name: fence_silent_workers
-- Silent for $1 seconds (workers_living). Who holds a batch counts, too, whether it has stopped, when its return did not
-- succeed, or was fenced before, when it claimed just then (campaign_send_batches_claimed).
UPDATE workers w SET fenced_at = coalesce(w.fenced_at, now())
WHERE w.heartbeat_at < now() - make_interval(secs => $1) AND w.id IN (
  SELECT l.id FROM workers l
  WHERE l.fenced_at IS NULL AND l.stopped_at IS NULL AND l.heartbeat_at < now() - make_interval(secs => $1)
  UNION SELECT b.worker FROM campaign_send_batches b WHERE b.state = 'claimed')
RETURNING w.id

-- name: lock_held_batches
-- Before doubtful_mails, and in a statement of its own: what their workers have marked as tried until now is seen by the next
-- one, and nothing more is marked. In the order in which outcomes lock them (campaign_send_batches_claimed).
SELECT id FROM campaign_send_batches WHERE worker = ANY ($1::uuid[]) AND state = 'claimed' ORDER BY id FOR UPDATE

-- name: doubtful_mails
-- Rows a fenced worker had marked as tried, of sends that must not send twice, become unknown; counted on their batch. It is
-- an attempt of which nothing is known.
WITH held AS (
  SELECT b.id, b.send_id, b.first_position, b.end_position, b.positions
  FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
  WHERE b.worker = ANY ($1::uuid[]) AND b.state = 'claimed' AND s.on_doubt = 'skip' FOR UPDATE OF b
), ended AS (
  UPDATE email_sends m
  SET state = 'unknown', attempts = m.attempts + 1, outcome_at = now(), attempted_at = now(), code = NULL,
      enhanced_code = NULL, relay = NULL,
      reply = CASE WHEN m.email <> '' THEN 'the worker that was sending this mail died' END,
      history = CASE WHEN m.attempted_at IS NOT NULL THEN
        coalesce(m.history, '[]') || jsonb_build_array(jsonb_build_object(
          'at', m.attempted_at, 'code', m.code, 'enhanced_code', m.enhanced_code, 'reply', m.reply, 'relay', m.relay))
        ELSE m.history END
  FROM held
  WHERE m.send_id = held.send_id AND m.position >= held.first_position AND m.position < held.end_position
    AND (held.positions IS NULL OR m.position = ANY (held.positions)) AND m.tried AND m.state = 'queued'
  RETURNING held.id
)
UPDATE campaign_send_batches b SET unknown = b.unknown + e.mails, attempted = b.attempted + e.mails
FROM (SELECT id, count(*)::integer AS mails FROM ended GROUP BY id) AS e WHERE b.id = e.id

-- name: rescue_batches
-- What a fenced worker held goes back to release (campaign_send_batches_claimed).
WITH freed AS (
  UPDATE campaign_send_batches b SET state = 'returned'
  WHERE b.worker = ANY ($1::uuid[]) AND b.state = 'claimed' RETURNING b.id, b.user_id
), woken AS (
  UPDATE release_users r SET due_at = now(), wakes = r.wakes + 1
  FROM (SELECT w.user_id FROM release_users w WHERE w.user_id IN (SELECT user_id FROM freed) ORDER BY w.user_id FOR UPDATE) AS u
  WHERE r.user_id = u.user_id
)
SELECT id FROM freed

-- name: list_workers
-- Those that live, those that ended within the last hour, and those that hold a batch all the same; dead without a heartbeat for $1
-- seconds. A row for each life of a process: few (campaign_send_batches_claimed).
WITH held AS (SELECT b.worker, count(*)::integer AS batches FROM campaign_send_batches b WHERE b.state = 'claimed' GROUP BY b.worker)
SELECT w.id, w.kind, w.host, w.pid, w.started_at, w.heartbeat_at, coalesce(h.batches, 0) AS batches,
       CASE WHEN w.stopped_at IS NOT NULL THEN 'stopped'
            WHEN w.fenced_at IS NOT NULL OR w.heartbeat_at < now() - make_interval(secs => $1) THEN 'dead'
            ELSE 'running' END AS state
FROM workers w LEFT JOIN held h ON h.worker = w.id
WHERE w.heartbeat_at > now() - interval '1 hour' OR h.batches > 0
ORDER BY w.id DESC LIMIT $2
