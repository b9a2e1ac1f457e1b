-- name: create_send
-- Nothing comes back when the idempotency key was used before; a second active send of the campaign violates
-- campaign_sends_active.
INSERT INTO campaign_sends (id, user_id, campaign_id, idempotency_key, request_hash, priority, on_doubt, template, sender,
                            selection)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (user_id, idempotency_key) DO NOTHING
RETURNING id

-- name: send_of_key
SELECT id, request_hash FROM campaign_sends WHERE user_id = $1 AND idempotency_key = $2

-- name: add_recipients
-- A page of recipients from a request. The fence is the number of recipients so far ($3): a page that comes twice finds
-- another number. Who is in the send already, by email_sends_address, is a duplicate; an empty key is an invalid address.
WITH send AS (
  SELECT id, user_id FROM campaign_sends
  WHERE id = $1 AND user_id = $2 AND state = 'receiving' AND recipients = $3 FOR UPDATE
), given AS (
  SELECT g.*, $3 + g.ordinality::integer - 1 AS position,
         row_number() OVER (PARTITION BY g.email_key ORDER BY g.ordinality) AS occurrence
  FROM unnest($4::text[], $5::text[], $6::text[], $7::text[], $8::text[]) WITH ORDINALITY
       AS g (recipient_id, email, email_key, name, variables)
), added AS (
  INSERT INTO email_sends (send_id, position, user_id, recipient_id, email, email_key, name, variables, state, outcome_at)
  SELECT send.id, position, send.user_id, recipient_id, email, email_key, name, variables::jsonb, judged.state,
         CASE WHEN judged.state <> 'queued' THEN now() END
  FROM send, given, LATERAL (
    SELECT CASE
      WHEN given.email_key = '' THEN 'invalid'
      WHEN given.occurrence > 1 OR EXISTS (
        SELECT FROM email_sends e WHERE e.send_id = $1 AND e.email_key = given.email_key) THEN 'duplicate'
      WHEN EXISTS (SELECT FROM suppressions x, privacy_key k
                   WHERE x.user_id IN (send.user_id, '')
                     AND x.email_key IN (given.email_key, erased_key(k.key, send.user_id, given.email_key))) THEN 'suppressed'
      ELSE 'queued' END AS state) AS judged
  RETURNING state
), counted AS (
  SELECT count(*)::integer AS recipients,
         count(*) FILTER (WHERE state = 'suppressed')::integer AS suppressed,
         count(*) FILTER (WHERE state = 'duplicate')::integer AS duplicate,
         count(*) FILTER (WHERE state = 'invalid')::integer AS invalid
  FROM added
)
UPDATE campaign_sends s
SET recipients = s.recipients + c.recipients, suppressed = s.suppressed + c.suppressed,
    duplicate = s.duplicate + c.duplicate, invalid = s.invalid + c.invalid, progress_at = now()
FROM counted c WHERE s.id = $1 AND c.recipients > 0
RETURNING s.recipients

-- name: start_send
-- All recipients are rows: release may begin.
UPDATE campaign_sends SET state = CASE WHEN hold THEN 'paused' ELSE 'running' END, progress_at = now()
WHERE id = $1 AND user_id = $2 AND state = 'receiving' RETURNING recipients, state

-- name: materialise_page
-- Stored leads become recipients, a page in key order. Rows and checkpoint move together; the last page starts the send.
-- Leads that came after the request are left out.
WITH send AS (
  SELECT * FROM campaign_sends WHERE id = $1 AND state = 'receiving' AND selection IS NOT NULL FOR UPDATE
), page AS (
  SELECT l.email_key, l.email, l.name, l.attributes,
         send.recipients + row_number() OVER (ORDER BY l.email_key)::integer - 1 AS position
  FROM send, leads l
  WHERE l.user_id = send.user_id AND l.email_key > coalesce(send.selected_until, '') AND l.created_at <= send.created_at
  ORDER BY l.email_key LIMIT $2
), added AS (
  INSERT INTO email_sends (send_id, position, user_id, email, email_key, name, variables, state, outcome_at)
  SELECT send.id, page.position, send.user_id, page.email, page.email_key, page.name, page.attributes,
         CASE WHEN stopped THEN 'suppressed' ELSE 'queued' END, CASE WHEN stopped THEN now() END
  FROM send, page, LATERAL (
    SELECT EXISTS (SELECT FROM suppressions x, privacy_key k
                   WHERE x.user_id IN (send.user_id, '')
                     AND x.email_key IN (page.email_key, erased_key(k.key, send.user_id, page.email_key))) AS stopped) AS judged
  RETURNING state, email_key
), counted AS (
  SELECT count(*)::integer AS recipients, count(*) FILTER (WHERE state = 'suppressed')::integer AS suppressed,
         max(email_key) AS last_key
  FROM added
)
UPDATE campaign_sends s
SET recipients = s.recipients + c.recipients, suppressed = s.suppressed + c.suppressed,
    selected_until = coalesce(c.last_key, s.selected_until), progress_at = now(),
    state = CASE WHEN c.recipients = $2 THEN 'receiving' WHEN s.hold THEN 'paused' ELSE 'running' END
FROM send, counted c WHERE s.id = send.id
RETURNING s.state, s.user_id, s.recipients

-- name: sends_to_materialise
-- Partial index on receiving.
SELECT id FROM campaign_sends WHERE state = 'receiving' AND selection IS NOT NULL ORDER BY progress_at LIMIT $1

-- name: mark_stalled_sends
-- Partial index on receiving. A request whose recipients have not come for a minute has lost its API.
UPDATE campaign_sends SET state = 'incomplete', ended_at = now()
WHERE state = 'receiving' AND selection IS NULL AND progress_at < now() - interval '60 seconds'
RETURNING id, user_id

-- name: sends_of_campaign
-- Newest first.
SELECT * FROM campaign_sends WHERE user_id = $1 AND campaign_id = $2 ORDER BY id DESC LIMIT 20

-- name: send_counts
-- Sums over the send's batches (campaign_send_batches_send_id_number_key).
SELECT s.recipients, s.next_position, s.duplicate, s.invalid,
       count(b.id)::integer AS batches,
       count(b.id) FILTER (WHERE b.state = 'done')::integer AS batches_done,
       coalesce(sum(b.sent), 0)::bigint AS sent,
       coalesce(sum(b.bounced), 0)::bigint AS bounced,
       coalesce(sum(b.failed), 0)::bigint AS failed,
       coalesce(sum(b.unknown), 0)::bigint AS unknown,
       (s.suppressed + coalesce(sum(b.suppressed), 0))::bigint AS suppressed,
       coalesce(sum(b.cancelled), 0)::bigint AS cancelled,
       (coalesce(sum(b.deferred), 0) - coalesce(sum(cardinality(b.positions)), 0))::bigint AS deferred,
       max(b.done_at) AS last_at
FROM campaign_sends s LEFT JOIN campaign_send_batches b ON b.send_id = s.id
WHERE s.id = $1 AND s.user_id = $2 GROUP BY s.id

-- name: pause_send
-- One that still receives its recipients goes on receiving, and is paused when it has them.
UPDATE campaign_sends SET hold = true, state = CASE WHEN state = 'running' THEN 'paused' ELSE state END
WHERE user_id = $1 AND campaign_id = $2 AND state IN ('receiving', 'running') RETURNING id, state

-- name: return_released_batches
-- With a pause, in its transaction: batches nobody has claimed go back at once; a claimed one is returned by its worker.
UPDATE campaign_send_batches SET state = 'returned' WHERE send_id = $1 AND user_id = $2 AND state = 'released'

-- name: resume_send
UPDATE campaign_sends SET hold = false, state = CASE WHEN state = 'paused' THEN 'running' ELSE state END
WHERE user_id = $1 AND campaign_id = $2 AND (state = 'paused' OR state = 'receiving' AND hold) RETURNING id, state

-- name: cancel_send
UPDATE campaign_sends SET state = 'cancelled'
WHERE user_id = $1 AND campaign_id = $2 AND state IN ('receiving', 'running', 'paused') RETURNING id

-- name: sends_to_cancel
-- Partial index.
SELECT id, user_id FROM campaign_sends WHERE state = 'cancelled' AND ended_at IS NULL ORDER BY id LIMIT $1

-- name: lock_cancelled_send
SELECT recipients, next_position, next_batch FROM campaign_sends
WHERE id = $1 AND state = 'cancelled' AND ended_at IS NULL FOR UPDATE

-- name: cancel_unreleased
-- A page behind the cursor: its rows end, and a batch that is done from the start holds their count.
WITH ended AS (
  UPDATE email_sends SET state = 'cancelled', outcome_at = now()
  WHERE send_id = $1 AND position >= $4 AND position < $5 AND state = 'queued' RETURNING position
), counted AS (
  INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, size, state, cancelled,
                                     done_at)
  SELECT $2, $1, s.user_id, $3, $4, $5, $5 - $4, 'done', (SELECT count(*) FROM ended), now()
  FROM campaign_sends s WHERE s.id = $1
)
UPDATE campaign_sends SET next_position = $5, next_batch = $3 + 1 WHERE id = $1

-- name: cancel_deferred
-- A page of deferred mails (email_sends_due), counted as above. Nothing is inserted where there were none.
WITH page AS (
  SELECT position FROM email_sends WHERE send_id = $1 AND due_at IS NOT NULL ORDER BY due_at LIMIT $4 FOR UPDATE
), ended AS (
  UPDATE email_sends m SET state = 'cancelled', outcome_at = now(), due_at = NULL
  FROM page WHERE m.send_id = $1 AND m.position = page.position RETURNING m.position
), counted AS (
  INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, positions, size, state,
                                     cancelled, done_at)
  SELECT $2, $1, s.user_id, $3, e.low, e.high + 1, e.positions, cardinality(e.positions), 'done',
         cardinality(e.positions), now()
  FROM campaign_sends s,
       (SELECT array_agg(position ORDER BY position) AS positions, min(position) AS low, max(position) AS high
        FROM ended) AS e
  WHERE s.id = $1 AND e.low IS NOT NULL
  RETURNING size
), moved AS (
  UPDATE campaign_sends SET next_batch = $3 + 1 WHERE id = $1 AND EXISTS (SELECT FROM counted)
)
SELECT coalesce((SELECT size FROM counted), 0)

-- name: cancel_open_batches
-- Batches that nobody holds: their rows end, and so do they.
WITH open AS (
  SELECT id, first_position, end_position, positions FROM campaign_send_batches
  WHERE send_id = $1 AND user_id = $2 AND state IN ('released', 'returned') FOR UPDATE
), ended AS (
  UPDATE email_sends m SET state = 'cancelled', outcome_at = now()
  FROM open
  WHERE m.send_id = $1 AND m.position >= open.first_position AND m.position < open.end_position
    AND (open.positions IS NULL OR m.position = ANY (open.positions)) AND m.state = 'queued'
  RETURNING open.id
), counted AS (
  SELECT open.id, count(ended.id)::integer AS rows FROM open LEFT JOIN ended USING (id) GROUP BY open.id
)
UPDATE campaign_send_batches b SET state = 'done', done_at = now(), cancelled = b.cancelled + counted.rows
FROM counted WHERE b.id = counted.id

-- name: end_cancelled_send
-- Over when no batch is open any more: those claimed come back from their worker first.
UPDATE campaign_sends s SET ended_at = now()
WHERE s.id = $1 AND s.state = 'cancelled' AND s.next_position = s.recipients
  AND NOT EXISTS (SELECT FROM campaign_send_batches b WHERE b.send_id = s.id AND b.state <> 'done')
RETURNING s.id

-- name: wake_release
-- Tells the release loop that a user has work now.
INSERT INTO release_users (user_id, due_at) VALUES ($1, now())
ON CONFLICT (user_id) DO UPDATE SET due_at = now(), wakes = release_users.wakes + 1

-- name: read_send
SELECT * FROM campaign_sends WHERE id = $1 AND user_id = $2

-- name: add_suppressions
-- The first reason stays.
INSERT INTO suppressions (user_id, email_key, reason, source)
SELECT $1, key, $3, $4 FROM unnest($2::text[]) AS key ON CONFLICT DO NOTHING
