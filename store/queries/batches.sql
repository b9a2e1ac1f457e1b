-- name: claim_batch
-- For this incarnation and this epoch alone, while the send runs. No row: somebody else has it, or it is over. Claiming
-- again what this incarnation holds succeeds: the answer to the first time may have been lost.
UPDATE campaign_send_batches b SET state = 'claimed', worker = $3, claimed_at = now()
FROM campaign_sends s, workers w
WHERE b.id = $1 AND b.epoch = $2 AND (b.state = 'released' OR b.state = 'claimed' AND b.worker = $3) AND s.id = b.send_id AND s.state = 'running'
  AND w.id = $3 AND w.fenced_at IS NULL
RETURNING b.id, b.send_id, b.user_id, b.number, b.epoch, b.first_position, b.end_position, b.positions, s.on_doubt, s.lane,
          s.relay, coalesce((SELECT r.weight FROM release_users r WHERE r.user_id = b.user_id), 1)::float8 AS weight

-- name: mail_of_send
-- What every mail of a send has in common; read once per send and worker.
SELECT template, sender FROM campaign_sends WHERE id = $1 AND user_id = $2

-- name: read_batch
-- A batch's mails that are still to do, by the primary key; `stopped`: must not be written to any more, which an erased
-- mail, without its address, never may. Who unsubscribed or complained still gets transactional mail.
SELECT m.position, m.recipient_id, m.email, m.email_key, m.name, m.variables, m.content, m.attempts,
       coalesce(extract(epoch FROM now() - m.failing_since), 0)::double precision AS failing_for,
       m.email = '' OR EXISTS (SELECT FROM suppressed_by($2, m.email_key) AS x
                              WHERE $5 <> 'transactional' OR x.reason NOT IN ('unsubscribe', 'complaint')) AS stopped,
       m.mail_id
FROM email_sends m
WHERE m.send_id = $1 AND m.user_id = $2 AND m.position >= $3 AND m.position < $4 AND m.state = 'queued'
ORDER BY m.position

-- name: read_positions
-- As read_batch, for a batch of deferred mails.
SELECT m.position, m.recipient_id, m.email, m.email_key, m.name, m.variables, m.content, m.attempts,
       coalesce(extract(epoch FROM now() - m.failing_since), 0)::double precision AS failing_for,
       m.email = '' OR EXISTS (SELECT FROM suppressed_by($2, m.email_key) AS x
                              WHERE $4 <> 'transactional' OR x.reason NOT IN ('unsubscribe', 'complaint')) AS stopped,
       m.mail_id
FROM email_sends m
WHERE m.send_id = $1 AND m.user_id = $2 AND m.position = ANY ($3::integer[]) AND m.state = 'queued'
ORDER BY m.position

-- name: mark_tried
-- With on_doubt = skip, before the first byte of a group; none when the batch is not this worker's any more.
WITH mine AS (
  SELECT b.send_id FROM campaign_send_batches b
  WHERE b.id = $1 AND b.epoch = $2 AND b.worker = $3 AND b.state = 'claimed' FOR UPDATE
)
UPDATE email_sends m SET tried = true FROM mine WHERE m.send_id = mine.send_id AND m.position = ANY ($4::integer[])
RETURNING m.position

-- name: fence_batches
-- Locks the batches that are still this worker's, in one order for all, and tells whether their sends still run.
SELECT b.id, s.state AS send_state
FROM unnest($1::uuid[], $2::integer[]) AS mine (id, epoch)
JOIN campaign_send_batches b ON b.id = mine.id AND b.epoch = mine.epoch AND b.worker = $3 AND b.state = 'claimed'
JOIN campaign_sends s ON s.id = b.send_id
WHERE EXISTS (SELECT FROM workers w WHERE w.id = $3 AND w.fenced_at IS NULL)
ORDER BY b.id FOR UPDATE OF b

-- name: write_outcomes
-- One send's outcomes and the counts on their batches. A mail that has an end already keeps it and is not counted.
-- A try, or an end without one, sends the try before it to the history, whatever the relay said; what a limit refused is neither,
-- and leaves the last one where it is. A try that failed by the relay's own fault is no attempt of the mail's. Of a mail that was erased meanwhile the reply is not kept: it may say
-- whose it was.
WITH given AS (
  SELECT g.*, g.attempted OR g.delay IS NULL OR g.reply <> '' AS tells, g.attempted OR g.delay IS NOT NULL AND g.reply <> '' AS tried
  FROM unnest($2::uuid[], $3::integer[], $4::text[], $5::boolean[], $6::smallint[], $7::text[], $8::text[], $9::text[],
              $10::double precision[])
    AS g (batch_id, position, state, attempted, code, enhanced_code, reply, relay, delay)
), written AS (
  UPDATE email_sends m
  SET state = g.state, attempts = m.attempts + g.attempted::integer, outcome_at = now(),
      due_at = CASE WHEN g.delay IS NOT NULL THEN now() + make_interval(secs => g.delay) END,
      failing_since = CASE WHEN g.tried AND g.delay IS NOT NULL THEN coalesce(m.failing_since, now()) ELSE m.failing_since END,
      attempted_at = CASE WHEN g.tried THEN now() WHEN g.tells THEN NULL ELSE m.attempted_at END,
      code = CASE WHEN g.tells THEN g.code ELSE m.code END,
      enhanced_code = CASE WHEN g.tells THEN g.enhanced_code ELSE m.enhanced_code END,
      reply = CASE WHEN NOT g.tells THEN m.reply WHEN m.email <> '' THEN nullif(g.reply, '') END,
      relay = CASE WHEN g.tells THEN nullif(g.relay, '') ELSE m.relay END,
      history = CASE WHEN g.tells AND m.attempted_at IS NOT NULL THEN
        coalesce(m.history, '[]') || jsonb_build_array(jsonb_build_object(
          'at', m.attempted_at, 'code', m.code, 'enhanced_code', m.enhanced_code, 'reply', m.reply, 'relay', m.relay))
        ELSE m.history END
  -- The positions once more: of a table that was never analysed all rows of the send would be read (measured: 700 ms a write of 250, against 10).
  FROM given g
  WHERE m.send_id = $1 AND m.position = ANY ($3::integer[]) AND m.position = g.position AND m.state = 'queued'
  RETURNING g.batch_id, m.state, g.attempted
)
UPDATE campaign_send_batches b
SET sent = b.sent + c.sent, deferred = b.deferred + c.deferred, bounced = b.bounced + c.bounced,
    failed = b.failed + c.failed, unknown = b.unknown + c.unknown, suppressed = b.suppressed + c.suppressed,
    attempted = b.attempted + c.attempted
FROM (
  SELECT batch_id, count(*) FILTER (WHERE state = 'sent') AS sent, count(*) FILTER (WHERE state = 'deferred') AS deferred,
         count(*) FILTER (WHERE state = 'bounced') AS bounced, count(*) FILTER (WHERE state = 'failed') AS failed,
         count(*) FILTER (WHERE state = 'unknown') AS unknown, count(*) FILTER (WHERE state = 'suppressed') AS suppressed,
         count(*) FILTER (WHERE attempted) AS attempted
  FROM written GROUP BY batch_id
) AS c WHERE b.id = c.batch_id

-- name: end_batches
-- All rows are through. The caller has fenced them in the same transaction.
UPDATE campaign_send_batches b SET state = 'done', done_at = now()
FROM campaign_sends s WHERE b.id = ANY ($1::uuid[]) AND s.id = b.send_id
RETURNING b.id, b.send_id, b.user_id, b.number, b.sent, b.bounced, b.failed, b.unknown, b.suppressed, b.cancelled, b.deferred,
          coalesce(cardinality(b.positions), 0) AS retried, s.lane, s.campaign_id

-- name: return_batches
-- Untouched rows go back to release, each batch after its delay in seconds. The caller has fenced them in the same
-- transaction, and wakes who waits for them. What was marked as tried and has no outcome was not begun: the worker says so by
-- returning it, and the death of a later one must not make doubt of it.
WITH returned AS (
  UPDATE campaign_send_batches b SET state = 'returned', not_before = now() + make_interval(secs => r.delay)
  FROM unnest($1::uuid[], $2::double precision[]) AS r (id, delay) WHERE b.id = r.id
  RETURNING b.send_id, b.first_position, b.end_position, b.positions
)
UPDATE email_sends m SET tried = false FROM returned r JOIN campaign_sends s ON s.id = r.send_id AND s.on_doubt = 'skip'
WHERE m.send_id = r.send_id AND m.position >= r.first_position AND m.position < r.end_position
  AND (r.positions IS NULL OR m.position = ANY (r.positions)) AND m.tried AND m.state = 'queued'

-- name: old_claims
-- What an incarnation has held for so many seconds (campaign_send_batches_claimed).
SELECT id FROM campaign_send_batches WHERE worker = $1 AND state = 'claimed' AND claimed_at < now() - make_interval(secs => $2)

-- name: return_forgotten
-- Claims whose answer was lost, and which nobody made again: nothing of them was begun. Not one that was claimed anew meanwhile.
UPDATE campaign_send_batches SET state = 'returned', not_before = now()
WHERE id = ANY ($1::uuid[]) AND worker = $2 AND state = 'claimed' AND claimed_at < now() - make_interval(secs => $3)
RETURNING user_id

-- name: stopped_sends
-- Of sends that a worker has batches of: those that do not run any more (primary key).
SELECT id FROM campaign_sends WHERE id = ANY ($1::uuid[]) AND state <> 'running'

-- name: mark_batches_announced
UPDATE campaign_send_batches SET announced_at = now() WHERE id = ANY ($1::uuid[])

-- name: batch_outcomes
-- What the rows say of the mails of batches that have ended (primary keys; OFFSET 0: batch by batch, or all months would be read):
-- for whoever announces what another process ended.
-- Left out: what ended on its way in, before any batch; what only waits for a limit, which is no news; and what a later batch has
-- had since, which tells of it.
SELECT b.id, m.position, m.state, (extract(epoch FROM m.outcome_at) * 1000)::bigint, m.recipient_id, m.mail_id,
       CASE WHEN m.state <> 'sent' THEN m.code END, CASE WHEN m.state <> 'sent' THEN m.reply END
FROM campaign_send_batches b CROSS JOIN LATERAL (
  SELECT * FROM email_sends e
  WHERE e.send_id = b.send_id AND e.position >= b.first_position AND e.position < b.end_position
    AND (b.positions IS NULL OR e.position = ANY (b.positions)) AND e.outcome_at <= b.done_at
    AND e.state IN ('sent', 'bounced', 'failed', 'unknown', 'suppressed', 'cancelled', 'deferred')
    AND NOT (e.state = 'suppressed' AND e.reply IS NULL)
    AND NOT (e.state = 'deferred' AND e.attempted_at IS DISTINCT FROM e.outcome_at)
  OFFSET 0) AS m
WHERE b.id = ANY ($1::uuid[]) ORDER BY b.id, m.position

-- name: unannounced_batches
-- Partial index on done_at. Younger ones are still in the hands of the worker that ended them.
SELECT b.id, b.send_id, b.user_id, b.number, b.sent, b.bounced, b.failed, b.unknown, b.suppressed, b.cancelled, b.deferred,
       coalesce(cardinality(b.positions), 0) AS retried, s.lane, s.campaign_id
FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
WHERE b.done_at < now() - interval '5 seconds' AND b.announced_at IS NULL ORDER BY b.done_at LIMIT $1
