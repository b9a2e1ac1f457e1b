-- name: known_mails
-- Which of these mails are rows already (primary key), and the database's own time: one clock says which day it is.
SELECT now() AS now, ARRAY(SELECT k.id FROM mail_keys k WHERE k.id = ANY ($1::uuid[])) AS known

-- name: open_daily_sends
-- Makes the sends or locks them until the transaction ends, in the order of their ids whoever asks: so no two wait for each
-- other. A send that has ended is told by its state.
INSERT INTO campaign_sends AS s (id, user_id, lane, campaign_id, request_hash, state, priority, on_doubt, template, sender)
SELECT d.id, d.user_id, $3, '', '', 'running', CASE $3 WHEN 'transactional' THEN 0 ELSE 2 END, d.on_doubt, '{}', '{}'
FROM unnest($1::uuid[], $2::text[], $4::text[]) AS d (id, user_id, on_doubt) ORDER BY d.id
ON CONFLICT (id) DO UPDATE SET progress_at = now()
RETURNING s.id, s.state

-- name: add_mails
-- Mails behind the last position of their sends, which the caller has locked, with their keys: one that somebody else has
-- written meanwhile violates mail_keys_pkey. An empty email_key is an invalid address, and its reply
-- says why. Two mails to one address are two mails. Who unsubscribed or complained still gets transactional mail. Keys go in
-- sorted, as whoever writes them does.
WITH given AS (
  SELECT g.*, row_number() OVER (PARTITION BY g.send_id ORDER BY g.ordinality)::integer - 1 AS number
  FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
       WITH ORDINALITY AS g (send_id, id, recipient_id, email, email_key, name, variables, content, reason)
), judged AS MATERIALIZED (
  SELECT g.*, s.user_id, s.recipients + g.number AS position,
         CASE WHEN g.email_key = '' THEN 'invalid'
              WHEN EXISTS (SELECT FROM suppressed_by(s.user_id, g.email_key) AS x
                           WHERE s.lane <> 'transactional' OR x.reason NOT IN ('unsubscribe', 'complaint')) THEN 'suppressed'
              ELSE 'queued' END AS state
  FROM given g JOIN campaign_sends s ON s.id = g.send_id
), keyed AS (
  INSERT INTO mail_keys (id, user_id, send_id, position) SELECT id, user_id, send_id, position FROM judged ORDER BY id
), added AS (
  INSERT INTO email_sends (send_id, position, user_id, recipient_id, email, email_key, name, variables, content, mail_id, state,
                           outcome_at, reply)
  SELECT send_id, position, user_id, recipient_id, email, email_key, name, variables::jsonb, content::jsonb, id, state,
         CASE WHEN state <> 'queued' THEN now() END, CASE WHEN state = 'invalid' THEN reason END
  FROM judged
  RETURNING send_id, state
), counted AS (
  SELECT send_id, count(*)::integer AS mails, count(*) FILTER (WHERE state = 'suppressed')::integer AS suppressed,
         count(*) FILTER (WHERE state = 'invalid')::integer AS invalid
  FROM added GROUP BY send_id
)
UPDATE campaign_sends s
SET recipients = s.recipients + c.mails, suppressed = s.suppressed + c.suppressed, invalid = s.invalid + c.invalid
FROM counted c WHERE s.id = c.send_id

-- name: claim_added
-- A batch in this incarnation's hands of what was added to each send: release never sees these mails, unless they come back.
-- FOR SHARE: who fences the incarnation waits for the batch, and frees it then. No row: it has been fenced.
WITH mine AS (
  SELECT id FROM workers WHERE id = $3 AND fenced_at IS NULL FOR SHARE
), moved AS (
  UPDATE campaign_sends s SET next_position = s.recipients, next_batch = s.next_batch + 1
  FROM unnest($1::uuid[], $2::uuid[]) AS b (batch_id, send_id), mine
  WHERE s.id = b.send_id AND s.next_position < s.recipients
  RETURNING b.batch_id, s.id, s.user_id, s.lane, s.on_doubt, s.relay, old.next_batch AS number, old.next_position AS low,
            s.recipients AS high
), batch AS (
  INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, size, state, worker,
                                     claimed_at, published_at)
  SELECT m.batch_id, m.id, m.user_id, m.number, m.low, m.high, m.high - m.low, 'claimed', $3, now(), now() FROM moved m
  RETURNING id, send_id, user_id, number, epoch, first_position, end_position, positions
)
SELECT b.*, m.on_doubt, m.lane, m.relay FROM batch b JOIN moved m ON m.batch_id = b.id

-- name: held_batches
-- Of mails that came again: the batches that this incarnation holds (campaign_send_batches_claimed, before anything else: a day
-- has very many), and may not know of, where the answer to a commit was lost.
WITH held AS MATERIALIZED (
  SELECT b.id, b.send_id, b.user_id, b.number, b.epoch, b.first_position, b.end_position, b.positions
  FROM campaign_send_batches b WHERE b.worker = $2 AND b.state = 'claimed'
)
SELECT held.*, s.on_doubt, s.lane, s.relay FROM held JOIN campaign_sends s ON s.id = held.send_id
WHERE EXISTS (SELECT FROM mail_keys k
              WHERE k.id = ANY ($1::uuid[]) AND k.send_id = held.send_id
                AND k.position >= held.first_position AND k.position < held.end_position
                AND (held.positions IS NULL OR k.position = ANY (held.positions)))

-- name: forget_mail_keys
-- A page of those of mails that are older than any record that could come again (mail_keys_by_age).
DELETE FROM mail_keys WHERE id IN (
  SELECT k.id FROM mail_keys k WHERE k.created_at < now() - interval '90 days' LIMIT $1
)
RETURNING id
