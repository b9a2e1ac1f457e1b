-- name: mails_of_address
-- A user's mails to an address, newest first, by email_sends_address of each month's partition. Sends from $3 to $4, and of the
-- last one the positions before $5: so a page goes on behind the one before, and looks at no newer month. All mails of the
-- address are read before the newest are taken: left to itself, the planner would rather read a month backwards by its primary
-- key than believe that so few rows fit.
WITH found AS MATERIALIZED (
  SELECT m.send_id, m.position, m.recipient_id, m.email, m.name, m.state, m.due_at, m.outcome_at, m.attempted_at, m.code,
         m.enhanced_code, m.reply, m.relay, m.history, m.content->'sender' AS sender, m.bounced_at, m.bounce_class,
         m.bounce_reason, m.complained_at
  FROM email_sends m
  WHERE m.user_id = $1 AND m.email_key = $2 AND m.send_id >= $3 AND m.send_id <= $4 AND (m.send_id < $4 OR m.position < $5)
    AND ($7::text IS NULL OR m.state = $7)
)
SELECT m.send_id, m.position, m.recipient_id, m.email, m.name, m.state, m.due_at, m.outcome_at, m.attempted_at, m.code,
       m.enhanced_code, m.reply, m.relay, m.history, m.bounced_at, m.bounce_class, m.bounce_reason, m.complained_at,
       s.campaign_id, s.lane, coalesce(m.sender, s.sender)->>'email' AS sender
FROM found m JOIN campaign_sends s ON s.id = m.send_id
WHERE $6::text IS NULL OR s.campaign_id = $6
ORDER BY m.send_id DESC, m.position DESC LIMIT $8

-- name: read_mail
-- Primary key.
SELECT m.send_id, m.position, m.recipient_id, m.email, m.name, m.state, m.due_at, m.outcome_at, m.attempted_at, m.code,
       m.enhanced_code, m.reply, m.relay, m.history, m.bounced_at, m.bounce_class, m.bounce_reason, m.complained_at,
       s.campaign_id, s.lane, coalesce(m.content->'sender', s.sender)->>'email' AS sender
FROM email_sends m JOIN campaign_sends s ON s.id = m.send_id
WHERE m.send_id = $1 AND m.position = $2 AND m.user_id = $3

-- name: mail_of_id
-- Where a single mail is, by its public id (primary key).
SELECT send_id, position FROM mail_keys WHERE id = $1 AND user_id = $2
