-- name: lease_users
-- Takes users whose work is due, for five seconds (release_users_due). SKIP LOCKED: loops do not wait for one another.
UPDATE release_users SET leased_until = now() + interval '5 seconds', leased_by = $1
WHERE user_id IN (
  SELECT user_id FROM release_users WHERE due_at <= now() AND leased_until < now()
  ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
RETURNING user_id, wakes

-- name: releasable_sends
-- Running sends of the leased users, in the order of their release (campaign_sends_running). `due`: deferred mails wait.
SELECT s.id, s.user_id, s.priority, s.next_position, s.next_batch, s.recipients,
       EXISTS (SELECT FROM email_sends m WHERE m.send_id = s.id AND m.due_at <= now()) AS due
FROM campaign_sends s WHERE s.user_id = ANY ($1::text[]) AND s.state = 'running' ORDER BY s.user_id, s.priority, s.id

-- name: open_mails
-- What is on its way for each of the leased users, and what waits to be reopened (campaign_send_batches_open).
SELECT b.user_id,
       coalesce(sum(b.size - b.sent - b.deferred - b.bounced - b.failed - b.unknown - b.suppressed)
                FILTER (WHERE b.state IN ('released', 'claimed')), 0)::integer AS on_the_way,
       count(*) FILTER (WHERE b.state = 'returned' AND b.not_before <= now())::integer AS returned
FROM campaign_send_batches b WHERE b.user_id = ANY ($1::text[]) AND b.state <> 'done' GROUP BY b.user_id

-- name: release_batches
-- Cursors move and batches appear in one statement. A send whose cursor is elsewhere by now ($2), or which does not run
-- any more, gets none.
WITH moved AS (
  UPDATE campaign_sends s SET next_position = cut.end_position, next_batch = s.next_batch + cut.batches
  FROM unnest($1::uuid[], $2::integer[], $3::integer[], $4::integer[]) AS cut (send_id, next_position, end_position, batches)
  WHERE s.id = cut.send_id AND s.next_position = cut.next_position AND s.state = 'running'
  RETURNING s.id, s.user_id, s.next_batch - cut.batches AS first_batch
)
INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, size)
SELECT b.id, moved.id, moved.user_id, moved.first_batch + b.number, b.first_position, b.end_position,
       b.end_position - b.first_position
FROM unnest($5::uuid[], $6::uuid[], $7::integer[], $8::integer[], $9::integer[])
     AS b (id, send_id, number, first_position, end_position)
JOIN moved ON moved.id = b.send_id
RETURNING id, send_id, epoch

-- name: release_due
-- Deferred mails whose time has come become one batch, and are queued again (email_sends_due).
WITH send AS (
  SELECT id, user_id, next_batch FROM campaign_sends WHERE id = $1 AND user_id = $2 AND state = 'running' FOR UPDATE
), due AS (
  SELECT m.position FROM send JOIN email_sends m ON m.send_id = $1
  WHERE m.due_at <= now() ORDER BY m.due_at LIMIT $4 FOR UPDATE OF m SKIP LOCKED
), queued AS (
  UPDATE email_sends m SET state = 'queued', due_at = NULL, tried = false
  FROM due WHERE m.send_id = $1 AND m.position = due.position RETURNING m.position
), batch AS (
  SELECT array_agg(position ORDER BY position) AS positions, min(position) AS low, max(position) AS high FROM queued
), moved AS (
  UPDATE campaign_sends s SET next_batch = s.next_batch + 1 FROM batch WHERE s.id = $1 AND batch.low IS NOT NULL
)
INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, positions, size)
SELECT $3, send.id, send.user_id, send.next_batch, low, high + 1, positions, cardinality(positions)
FROM send, batch WHERE low IS NOT NULL
RETURNING id, send_id, epoch, size

-- name: reopen_batches
-- Returned batches of running sends are released again, oldest first, with the next epoch.
UPDATE campaign_send_batches b
SET state = 'released', epoch = b.epoch + 1, released_at = now(), published_at = NULL, publications = 0, worker = NULL
WHERE b.id IN (
  SELECT r.id FROM campaign_send_batches r JOIN campaign_sends s ON s.id = r.send_id
  WHERE r.user_id = $1 AND r.state = 'returned' AND r.not_before <= now() AND s.state = 'running'
  ORDER BY s.priority, r.send_id, r.number LIMIT $2 FOR UPDATE OF r SKIP LOCKED
)
RETURNING b.id, b.send_id, b.epoch, b.size

-- name: mark_published
UPDATE campaign_send_batches b SET published_at = now(), publications = b.publications + 1
FROM unnest($1::uuid[], $2::integer[]) AS p (id, epoch) WHERE b.id = p.id AND b.epoch = p.epoch

-- name: settle_users
-- Gives users back with the time of their next work. Who was woken meanwhile is due at once.
UPDATE release_users r
SET leased_until = '-infinity', leased_by = NULL,
    due_at = CASE WHEN r.wakes <> u.wakes THEN now() WHEN u.wait IS NULL THEN NULL
                  ELSE now() + make_interval(secs => u.wait) END
FROM unnest($2::text[], $3::bigint[], $4::double precision[]) AS u (user_id, wakes, wait)
WHERE r.user_id = u.user_id AND r.leased_by = $1

-- name: batches_to_publish
-- A pointer that was lost between commit and Kafka: published again after 30 s, then 60, 120… (campaign_send_batches_released).
SELECT b.id, b.send_id, b.epoch FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
WHERE b.state = 'released' AND s.state = 'running'
  AND b.released_at < now() - interval '30 seconds'
  AND coalesce(b.published_at, b.released_at) < now() - make_interval(secs => 30 * power(2, least(b.publications, 6)))
ORDER BY b.released_at LIMIT $1

-- name: finish_sends
-- Running sends with nothing left to release, under way or deferred are done (campaign_sends_running).
UPDATE campaign_sends s SET state = 'done', ended_at = now()
WHERE s.state = 'running' AND s.next_position = s.recipients
  AND NOT EXISTS (SELECT FROM campaign_send_batches b WHERE b.send_id = s.id AND b.state <> 'done')
  AND NOT EXISTS (SELECT FROM email_sends m WHERE m.send_id = s.id AND m.due_at IS NOT NULL)
RETURNING s.id, s.user_id
