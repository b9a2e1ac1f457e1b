-- name: create_send
-- Nothing comes back when the idempotency key was used before; a second active send of the campaign violates
-- campaign_sends_active.
INSERT INTO campaign_sends (id, user_id, campaign_id, idempotency_key, request_hash, priority, on_doubt, template, sender,
                            selection, relay, start_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (user_id, idempotency_key) DO NOTHING
RETURNING id

-- name: send_of_key
-- Unique index on (user_id, idempotency_key).
SELECT id, request_hash FROM campaign_sends WHERE user_id = $1 AND idempotency_key = $2 AND lane = 'campaign'

-- name: receive_send_again
-- The same request again, by the unique index on (user_id, idempotency_key): what has lost its API goes on receiving, for a
-- week. Another active send of the campaign violates campaign_sends_active.
UPDATE campaign_sends SET state = 'receiving', ended_at = NULL, progress_at = now()
WHERE user_id = $1 AND idempotency_key = $2 AND request_hash = $3 AND lane = 'campaign'
  AND (state = 'receiving' OR state = 'incomplete' AND ended_at > now() - interval '7 days')
RETURNING id

-- name: send_receipt
-- Primary key. How far a send has come in.
SELECT state, recipients, recipients_hash FROM campaign_sends WHERE id = $1 AND user_id = $2 AND lane = 'campaign'

-- name: keep_receiving
-- A sign of life of a stream whose next page is not full yet.
UPDATE campaign_sends SET progress_at = now()
WHERE id = $1 AND user_id = $2 AND lane = 'campaign' AND state = 'receiving' RETURNING id

-- name: add_recipients
-- A page of recipients from a request. The fence is the number of recipients so far ($3): a page that comes twice finds
-- another number. Who is in the send already, by email_sends_address, is a duplicate; an empty key is an invalid address, and
-- its reply says why. LIMIT where EXISTS would do: of that the planner makes a hash of all recipients so far, for each page
-- (400 ms instead of 20 behind 60,000 of them). $9: the hash over all pages with this one, of a stream; $10: why a recipient is invalid.
WITH send AS (
  SELECT id, user_id FROM campaign_sends
  WHERE id = $1 AND user_id = $2 AND state = 'receiving' AND recipients = $3 FOR UPDATE
), given AS (
  SELECT g.*, $3 + g.ordinality::integer - 1 AS position,
         row_number() OVER (PARTITION BY g.email_key ORDER BY g.ordinality) AS occurrence
  FROM unnest($4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $10::text[]) WITH ORDINALITY
       AS g (recipient_id, email, email_key, name, variables, reason)
), judged AS MATERIALIZED (
  SELECT given.*, CASE
    WHEN given.email_key = '' THEN 'invalid'
    WHEN given.occurrence > 1 OR (
      SELECT true FROM email_sends e WHERE e.send_id = $1 AND e.email_key = given.email_key LIMIT 1) THEN 'duplicate'
    WHEN (SELECT true FROM suppressed_by(send.user_id, given.email_key) LIMIT 1) THEN 'suppressed'
    ELSE 'queued' END AS state
  FROM send, given
), added AS (
  INSERT INTO email_sends (send_id, position, user_id, recipient_id, email, email_key, name, variables, state, outcome_at,
                           reply)
  SELECT send.id, j.position, send.user_id, j.recipient_id, j.email, j.email_key, j.name, j.variables::jsonb, j.state,
         CASE WHEN j.state <> 'queued' THEN now() END, CASE WHEN j.state = 'invalid' THEN nullif(j.reason, '') END
  FROM send, judged j
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
    duplicate = s.duplicate + c.duplicate, invalid = s.invalid + c.invalid, recipients_hash = $9, progress_at = now()
FROM counted c WHERE s.id = $1 AND c.recipients > 0
RETURNING s.recipients

-- name: start_send
-- All recipients are rows: release may begin.
UPDATE campaign_sends SET state = CASE WHEN hold THEN 'paused' ELSE 'running' END, progress_at = now()
WHERE id = $1 AND user_id = $2 AND state = 'receiving' RETURNING recipients, state

-- name: materialise_page
-- Stored leads become recipients, a page in key order (the primary key of leads). $2 leads are looked at, however many of
-- them fit, so that a page takes bounded time and the checkpoint always moves. Rows and checkpoint move together; the last
-- page starts the send. Leads that came after the request are left out. An attribute is compared as text: of a CSV all are.
WITH send AS (
  SELECT s.*,
         ARRAY(SELECT jsonb_array_elements_text(coalesce(s.selection->'tags', '[]'))) AS with_all,
         ARRAY(SELECT jsonb_array_elements_text(coalesce(s.selection->'anyTags', '[]'))) AS with_any,
         ARRAY(SELECT jsonb_array_elements_text(coalesce(s.selection->'withoutTags', '[]'))) AS without,
         ARRAY(SELECT jsonb_array_elements_text(coalesce(s.selection->'present', '[]'))) AS present,
         ARRAY(SELECT key FROM jsonb_each_text(coalesce(s.selection->'attributes', '{}')) ORDER BY key) AS keys,
         ARRAY(SELECT value FROM jsonb_each_text(coalesce(s.selection->'attributes', '{}')) ORDER BY key) AS equal
  FROM campaign_sends s WHERE s.id = $1 AND s.state = 'receiving' AND s.selection IS NOT NULL FOR UPDATE
), looked_at AS (
  SELECT l.email_key, l.email, l.name, l.attributes,
         l.created_at <= send.created_at
           AND l.tags @> send.with_all AND (send.with_any = '{}' OR l.tags && send.with_any) AND NOT l.tags && send.without
           AND l.attributes ?& send.present
           AND NOT EXISTS (SELECT FROM unnest(send.keys, send.equal) AS wanted (key, value)
                           WHERE l.attributes->>wanted.key IS DISTINCT FROM wanted.value) AS fits
  FROM send, LATERAL (
    SELECT * FROM leads l WHERE l.user_id = send.user_id AND l.email_key > coalesce(send.selected_until, '')
    ORDER BY l.email_key LIMIT $2) AS l
), page AS (
  SELECT l.*, send.recipients + row_number() OVER (ORDER BY l.email_key)::integer - 1 AS position
  FROM send, looked_at l WHERE l.fits
), judged AS MATERIALIZED (
  SELECT page.*, coalesce((SELECT true FROM suppressed_by(send.user_id, page.email_key) LIMIT 1), false) AS stopped
  FROM send, page
), added AS (
  INSERT INTO email_sends (send_id, position, user_id, email, email_key, name, variables, state, outcome_at)
  SELECT send.id, j.position, send.user_id, j.email, j.email_key, j.name, j.attributes,
         CASE WHEN j.stopped THEN 'suppressed' ELSE 'queued' END, CASE WHEN j.stopped THEN now() END
  FROM send, judged j
  RETURNING state
), counted AS (
  SELECT count(*)::integer AS recipients, count(*) FILTER (WHERE state = 'suppressed')::integer AS suppressed FROM added
), seen AS (
  SELECT count(*)::integer AS leads, max(email_key) AS last_key FROM looked_at
)
UPDATE campaign_sends s
SET recipients = s.recipients + c.recipients, suppressed = s.suppressed + c.suppressed,
    selected_until = coalesce(seen.last_key, s.selected_until), progress_at = now(),
    state = CASE WHEN seen.leads = $2 THEN 'receiving' WHEN s.hold THEN 'paused' ELSE 'running' END
FROM send, counted c, seen WHERE s.id = send.id
RETURNING s.state, s.user_id, s.recipients

-- name: sends_to_materialise
-- Partial index on receiving.
SELECT id FROM campaign_sends WHERE state = 'receiving' AND selection IS NOT NULL ORDER BY progress_at LIMIT $1

-- name: mark_stalled_sends
-- Partial index on receiving. A request whose recipients have not come for a minute has lost its API.
UPDATE campaign_sends SET state = 'incomplete', ended_at = now()
WHERE state = 'receiving' AND lane = 'campaign' AND selection IS NULL AND progress_at < now() - interval '60 seconds'
RETURNING id, user_id

-- name: sends_of_campaign
-- Newest first (campaign_sends_of_campaign).
SELECT * FROM campaign_sends WHERE user_id = $1 AND campaign_id = $2 AND lane = 'campaign' ORDER BY id DESC LIMIT 20

-- name: campaign_send
-- Primary key.
SELECT * FROM campaign_sends WHERE id = $1 AND user_id = $2 AND lane = 'campaign'

-- name: list_sends
-- Newest first (campaign_sends_by_user, or campaign_sends_of_campaign); $2 is the last id of the page before, or null, and so
-- are campaign and state where they do not matter.
SELECT * FROM campaign_sends
WHERE user_id = $1 AND lane = 'campaign' AND ($2::uuid IS NULL OR id < $2)
  AND ($3::text IS NULL OR campaign_id = $3) AND ($4::text IS NULL OR state = $4)
ORDER BY id DESC LIMIT $5

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

-- name: send_pace
-- A send's batches by state (campaign_send_batches_send_id_number_key): how many, the mails of them that went out or came to
-- an end there, those of the last half minute, and when the first of them was released.
SELECT b.state, count(*) FILTER (WHERE b.size > 0)::integer AS batches,
       coalesce(sum(b.sent + b.bounced + b.failed + b.unknown + b.suppressed), 0)::bigint AS ended,
       coalesce(sum(b.sent + b.bounced + b.failed + b.unknown + b.suppressed)
                FILTER (WHERE b.size > 0 AND b.done_at > now() - interval '30 seconds'), 0)::bigint AS lately,
       min(b.released_at) AS first_at, max(b.done_at) AS last_at
FROM campaign_sends s JOIN campaign_send_batches b ON b.send_id = s.id
WHERE s.id = $1 AND s.user_id = $2 AND s.lane = 'campaign' GROUP BY b.state

-- name: send_errors
-- Why mails do not arrive, of a send's newest batches that have some: 50 of the newest 1,000 (the unique index on send and
-- number), so 5,000 mails by their primary key at the most, however large the send is.
WITH newest AS (
  SELECT b.first_position, b.end_position, b.positions, b.number, b.bounced + b.failed + b.unknown + b.deferred AS errors
  FROM campaign_sends s JOIN campaign_send_batches b ON b.send_id = s.id
  WHERE s.id = $1 AND s.user_id = $2 AND s.lane = 'campaign' ORDER BY b.number DESC LIMIT 1000
), troubled AS (
  SELECT * FROM newest WHERE errors > 0 ORDER BY number DESC LIMIT 50
), places AS MATERIALIZED (
  SELECT DISTINCT unnest(coalesce(t.positions, ARRAY(SELECT generate_series(t.first_position, t.end_position - 1)))) AS position
  FROM troubled t
)
SELECT m.code, m.enhanced_code, count(*)::integer AS mails,
       (array_agg(m.reply ORDER BY m.outcome_at DESC) FILTER (WHERE m.reply IS NOT NULL))[1] AS example
FROM places p JOIN email_sends m ON m.send_id = $1 AND m.user_id = $2 AND m.position = p.position
WHERE m.state IN ('deferred', 'bounced', 'failed', 'unknown') AND (m.code IS NOT NULL OR m.reply IS NOT NULL)
GROUP BY m.code, m.enhanced_code ORDER BY mails DESC, m.code LIMIT 10

-- name: pause_send
-- One that still receives its recipients goes on receiving, and is paused when it has them.
UPDATE campaign_sends SET hold = true, state = CASE WHEN state = 'running' THEN 'paused' ELSE state END
WHERE user_id = $1 AND campaign_id = $2 AND lane = 'campaign' AND state IN ('receiving', 'running') RETURNING id, state

-- name: return_released_batches
-- With a pause, in its transaction: batches nobody has claimed go back at once; a claimed one is returned by its worker.
UPDATE campaign_send_batches SET state = 'returned' WHERE send_id = $1 AND user_id = $2 AND state = 'released'

-- name: resume_send
UPDATE campaign_sends SET hold = false, state = CASE WHEN state = 'paused' THEN 'running' ELSE state END
WHERE user_id = $1 AND campaign_id = $2 AND lane = 'campaign' AND (state = 'paused' OR state = 'receiving' AND hold)
RETURNING id, state

-- name: cancel_send
-- The campaign's active send; where it has none, the newest that is incomplete. That one has had an end, and gets another
-- (campaign_sends_of_campaign).
UPDATE campaign_sends SET state = 'cancelled', ended_at = NULL
WHERE id = (
    SELECT id FROM campaign_sends
    WHERE user_id = $1 AND campaign_id = $2 AND lane = 'campaign' AND state IN ('receiving', 'running', 'paused', 'incomplete')
    ORDER BY state = 'incomplete', id DESC LIMIT 1 FOR UPDATE)
  AND state IN ('receiving', 'running', 'paused', 'incomplete')
RETURNING id

-- name: sends_to_cancel
-- Partial index.
SELECT id, user_id FROM campaign_sends WHERE state = 'cancelled' AND ended_at IS NULL ORDER BY id LIMIT $1

-- name: lock_cancelled_send
-- NO KEY: the ends of batches, which refer to the send, need not wait for a page.
SELECT recipients, next_position, next_batch FROM campaign_sends
WHERE id = $1 AND state = 'cancelled' AND ended_at IS NULL FOR NO KEY UPDATE

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
-- Over when no batch is open any more: those claimed come back from their worker first. What one of them has deferred since
-- the page before is cancelled with the next (email_sends_due).
UPDATE campaign_sends s SET ended_at = now()
WHERE s.id = $1 AND s.state = 'cancelled' AND s.next_position = s.recipients
  AND NOT EXISTS (SELECT FROM campaign_send_batches b WHERE b.send_id = s.id AND b.state <> 'done')
  AND NOT EXISTS (SELECT FROM email_sends m WHERE m.send_id = s.id AND m.due_at IS NOT NULL)
RETURNING s.id

-- name: wake_release
-- Tells the release loop that these users have work now, in one order for all.
INSERT INTO release_users (user_id, due_at) SELECT u.user_id, now() FROM unnest($1::text[]) AS u (user_id) ORDER BY 1
ON CONFLICT (user_id) DO UPDATE SET due_at = now(), wakes = release_users.wakes + 1

-- name: read_send
-- Primary key. Of any lane.
SELECT * FROM campaign_sends WHERE id = $1 AND user_id = $2
