-- name: hold_source
-- Until the transaction ends no other page of this source is judged: what comes twice at once has its effect once. No row: it
-- was removed. Primary key.
SELECT now() AS now FROM feedback_sources WHERE id = $1 FOR NO KEY UPDATE

-- name: places_of_mails
-- Where single mails are, by their public ids (primary key). Of the user, or with '' of everybody.
SELECT id, send_id, position FROM mail_keys WHERE id = ANY ($2::uuid[]) AND ($1 = '' OR user_id = $1)

-- name: lock_feedback_mails
-- Mails at these places, of the user, or with '' of everybody, in one order for all who tell. One by one by the primary key:
-- left to itself, the planner would read all months that were never analysed, or all sends for each mail.
SELECT m.send_id, m.position, m.user_id, m.recipient_id,
       (SELECT nullif(s.campaign_id, '') FROM campaign_sends s WHERE s.id = m.send_id) AS campaign_id,
       CASE WHEN m.email <> '' THEN m.email_key END AS email_key, m.state, m.bounce_class, m.bounced_at, m.bounce_reason,
       m.complained_at
FROM (SELECT * FROM unnest($2::uuid[], $3::integer[]) AS g (send_id, position) ORDER BY g.send_id, g.position) AS g
CROSS JOIN LATERAL (
  SELECT * FROM email_sends e
  WHERE e.send_id = g.send_id AND e.position = g.position AND ($1 = '' OR e.user_id = $1) FOR UPDATE
) AS m

-- name: known_feedback
-- Which of these a source has told before. Primary key.
SELECT event_id FROM feedback_events WHERE source_id = $1 AND event_id = ANY ($2::text[])

-- name: write_feedback
-- On mails that are locked in this transaction; each by the primary key. (Of many sends, the positions as a condition of their own
-- would read each of them in each send.) No index has these columns: it stays a HOT update. Of
-- a mail that was erased the reason is not kept: it may say whose it was.
UPDATE email_sends m
SET bounced_at = g.bounced_at, bounce_class = g.bounce_class, complained_at = g.complained_at,
    bounce_reason = CASE WHEN m.email <> '' THEN g.bounce_reason END
FROM unnest($1::uuid[], $2::integer[], $3::timestamptz[], $4::text[], $5::text[], $6::timestamptz[])
  AS g (send_id, position, bounced_at, bounce_class, bounce_reason, complained_at)
WHERE m.send_id = g.send_id AND m.position = g.position

-- name: suppress_told
-- Of many users; else as add_suppressions, which tells those who listen, too.
WITH given AS (
  SELECT DISTINCT ON (g.user_id, g.email_key COLLATE "C") g.user_id, g.email_key, g.reason, g.source
  FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS g (user_id, email_key, reason, source, number)
  ORDER BY g.user_id, g.email_key COLLATE "C", array_position('{unsubscribe,complaint,bounce,manual,erased}', g.reason) DESC,
           g.number
), written AS (
  INSERT INTO suppressions AS s (user_id, email_key, reason, source)
  SELECT g.user_id, g.email_key, g.reason, g.source FROM given g
  -- OFFSET 0: one by one, or all suppressions would be read and sorted.
  WHERE NOT EXISTS (SELECT FROM suppressions e
                    WHERE e.user_id = g.user_id
                      AND e.email_key = erased_key((SELECT k.key FROM privacy_key k), g.user_id, g.email_key) OFFSET 0)
  ORDER BY g.user_id, g.email_key COLLATE "C"
  ON CONFLICT (user_id, email_key) DO UPDATE SET reason = excluded.reason, source = excluded.source, created_at = now()
  WHERE array_position('{unsubscribe,complaint,bounce,manual,erased}', excluded.reason)
      > array_position('{unsubscribe,complaint,bounce,manual,erased}', s.reason)
  RETURNING s.user_id
)
SELECT pg_notify('suppressions', w.user_id) FROM (SELECT DISTINCT user_id FROM written) AS w

-- name: add_feedback
-- What had an effect. A mail that is still being tried is nothing to announce. The address only where there is no mail: an
-- erasure finds it on the mail.
INSERT INTO feedback_events (source_id, event_id, user_id, type, class, send_id, position, email_key, happened_at, announced_at)
SELECT $1, g.event_id, g.user_id, g.type, g.class, g.send_id, g.position, g.email_key, g.happened_at,
       CASE WHEN g.type = 'delayed' THEN now() END
FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::uuid[], $7::integer[], $8::text[], $9::timestamptz[])
  AS g (event_id, user_id, type, class, send_id, position, email_key, happened_at)

-- name: mark_feedback_announced
-- Primary key.
UPDATE feedback_events f SET announced_at = now() FROM unnest($1::uuid[], $2::text[]) AS g (source_id, event_id)
WHERE f.source_id = g.source_id AND f.event_id = g.event_id

-- name: unannounced_feedback
-- Partial index on received_at. Younger ones are still in the hands of the API that took them. What the mail says by now, which
-- is nothing of a person that was erased.
SELECT f.source_id, f.event_id, f.user_id, f.type, f.class, f.send_id, f.position, f.email_key, f.happened_at,
       (SELECT nullif(s.campaign_id, '') FROM campaign_sends s WHERE s.id = f.send_id) AS campaign_id,
       m.recipient_id, m.bounce_reason
FROM (SELECT * FROM feedback_events WHERE announced_at IS NULL AND received_at < now() - interval '5 seconds'
      ORDER BY received_at LIMIT $1) AS f
LEFT JOIN LATERAL (
  SELECT e.recipient_id, e.bounce_reason FROM email_sends e WHERE e.send_id = f.send_id AND e.position = f.position LIMIT 1
) AS m ON true

-- name: forget_feedback
-- A page of what no source tells again (feedback_events_by_age). The mails keep what was told of them.
DELETE FROM feedback_events WHERE (source_id, event_id) IN (
  SELECT f.source_id, f.event_id FROM feedback_events f
  WHERE f.received_at < now() - interval '90 days' AND f.announced_at IS NOT NULL LIMIT $1
)
RETURNING event_id

-- name: erase_feedback
-- What was told of an address without a mail (feedback_events_address).
DELETE FROM feedback_events WHERE user_id = $1 AND email_key = $2 RETURNING event_id
