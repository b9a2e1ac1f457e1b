-- name: search_recipients
-- Looks at positions from $3 up to and without $4 (primary key), at most $5 of them, and stops at the $6th that fits. The last
-- one looked at comes in any case: from there the next slice goes on. No index has the state or the code: each outcome would
-- pay for it.
SELECT position, recipient_id, email, name, state, attempts, code, enhanced_code, reply, relay, outcome_at, due_at,
       bounced_at, complained_at, fits, number = $5 AS last
FROM (
  SELECT m.*, row_number() OVER (ORDER BY m.position) AS number,
         ($7::text IS NULL OR m.state = $7) AND ($8::integer IS NULL OR m.code = $8) AS fits
  FROM email_sends m
  WHERE m.send_id = $1 AND m.user_id = $2 AND m.position >= $3 AND m.position < $4 ORDER BY m.position LIMIT $5
) AS slice
WHERE fits OR number = $5 ORDER BY position LIMIT $6

-- name: recipients_of_address
-- As above, of one address (email_sends_address): few, one of them no duplicate.
SELECT position, recipient_id, email, name, state, attempts, code, enhanced_code, reply, relay, outcome_at, due_at,
       bounced_at, complained_at
FROM email_sends
WHERE send_id = $1 AND user_id = $2 AND email_key = $3 AND position >= $4 AND position < $5
  AND ($6::text IS NULL OR state = $6) AND ($7::integer IS NULL OR code = $7)
ORDER BY position LIMIT $8

-- name: positions_of
-- Where these addresses are (email_sends_address).
SELECT position FROM email_sends WHERE send_id = $1 AND user_id = $2 AND email_key = ANY ($3::text[]) ORDER BY position

-- name: lock_retried_send
-- Before retry_mails, in its transaction and not in its statement: what was released until now is seen by the next one.
SELECT state, recipients FROM campaign_sends WHERE id = $1 AND user_id = $2 AND lane = 'campaign' FOR NO KEY UPDATE

-- name: retry_mails
-- Mails at the positions $3 that have ended go again (primary key), due at once. Left out: those of a batch that is still open,
-- which would read them as its own (campaign_send_batches_open), and what ended after $6, so that the same request does it once.
-- The attempt before stays where it is, as with each deferral; a mail that ended without one takes the reason to its history.
-- A batch of no mails, done from the start, takes the ends back: sums over batches stay right. Its event, which maintenance
-- tells, does the same for the live view. The dead letters of failed ones are replayed by it (dead_letters_of_mail).
WITH found AS (
  SELECT m.position, m.state,
         EXISTS (SELECT FROM suppressed_by($2, m.email_key) AS x
                 WHERE x.reason NOT IN ('unsubscribe', 'complaint')
                   OR (SELECT s.lane FROM campaign_sends s WHERE s.id = $1 AND s.user_id = $2) <> 'transactional')
           OR m.email = '' AS stopped
  FROM email_sends m
  WHERE m.send_id = $1 AND m.user_id = $2 AND m.position = ANY ($3::integer[]) AND m.state = ANY ($4::text[])
    AND ($5::integer[] IS NULL OR m.code = ANY ($5)) AND ($6::timestamptz IS NULL OR m.outcome_at <= $6)
    AND NOT EXISTS (SELECT FROM campaign_send_batches b
                    WHERE b.user_id = $2 AND b.state <> 'done' AND b.send_id = $1
                      AND m.position >= b.first_position AND m.position < b.end_position
                      AND (b.positions IS NULL OR m.position = ANY (b.positions)))
  FOR UPDATE OF m
), again AS (
  UPDATE email_sends m
  SET state = 'deferred', due_at = now(), outcome_at = now(), attempts = 0, tried = false, failing_since = NULL,
      reply = CASE WHEN m.attempted_at IS NOT NULL THEN m.reply END,
      history = CASE WHEN m.attempted_at IS NULL AND m.reply IS NOT NULL THEN
        coalesce(m.history, '[]') || jsonb_build_array(jsonb_build_object('at', m.outcome_at, 'reply', m.reply))
        ELSE m.history END
  FROM found f WHERE m.send_id = $1 AND m.position = f.position AND NOT f.stopped
  RETURNING f.state, f.position
), closed AS (
  UPDATE dead_letters d SET state = 'replayed', replays = d.replays + 1, replayed_at = now()
  FROM again a WHERE d.send_id = $1 AND d.position = a.position AND d.user_id = $2 AND d.state = 'open' AND a.state = 'failed'
), counted AS (
  SELECT count(*)::integer AS mails, count(*) FILTER (WHERE state = 'failed')::integer AS failed,
         count(*) FILTER (WHERE state = 'bounced')::integer AS bounced,
         count(*) FILTER (WHERE state = 'unknown')::integer AS unknown
  FROM again
), taken_back AS (
  INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, size, state, deferred, failed,
                                     bounced, unknown, published_at, done_at)
  SELECT $7, s.id, s.user_id, s.next_batch, 0, 0, 0, 'done', c.mails, -c.failed, -c.bounced, -c.unknown, now(), now()
  FROM campaign_sends s, counted c WHERE s.id = $1 AND s.user_id = $2 AND c.mails > 0
), moved AS (
  UPDATE campaign_sends s
  SET next_batch = s.next_batch + 1, ended_at = NULL, state = CASE WHEN s.state = 'done' THEN 'running' ELSE s.state END
  FROM counted c WHERE s.id = $1 AND s.user_id = $2 AND c.mails > 0
)
SELECT c.mails, (SELECT count(*) FROM found f WHERE f.stopped)::integer AS suppressed FROM counted c
