-- name: user_limits
-- Primary key. The users are those a process serves, not those who ask.
SELECT user_id, rate, burst, per_minute, per_hour, per_day FROM user_limits WHERE user_id = ANY($1::text[]) AND name = $2

-- name: set_user_limit
-- Null is the settings' default of that kind.
INSERT INTO user_limits (user_id, name, rate, burst, per_minute, per_hour, per_day) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (user_id, name) DO UPDATE SET rate = EXCLUDED.rate, burst = EXCLUDED.burst, per_minute = EXCLUDED.per_minute,
  per_hour = EXCLUDED.per_hour, per_day = EXCLUDED.per_day

-- name: remove_user_limit
DELETE FROM user_limits WHERE user_id = $1 AND name = $2

-- name: shared_limits
-- All of them: operators write these by hand, and every process needs each.
SELECT kind, target, rate, burst, per_minute, per_hour, per_day FROM shared_limits ORDER BY kind, target

-- name: set_shared_limit
INSERT INTO shared_limits (kind, target, rate, burst, per_minute, per_hour, per_day) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (kind, target) DO UPDATE SET rate = EXCLUDED.rate, burst = EXCLUDED.burst, per_minute = EXCLUDED.per_minute,
  per_hour = EXCLUDED.per_hour, per_day = EXCLUDED.per_day

-- name: remove_shared_limit
DELETE FROM shared_limits WHERE kind = $1 AND target = $2 RETURNING kind

-- name: mails_by_user
-- For counters that Redis lost: what went on the wire since $1, with all that a worker has in hand, which is more rather than
-- less. Batches that ended since then by a BRIN index (campaign_send_batches_ended), the open ones by theirs.
SELECT b.user_id AS target, coalesce(sum(n.mails), 0)::bigint AS mails,
       coalesce(sum(n.mails) FILTER (WHERE s.lane <> 'transactional'), 0)::bigint AS bulk
FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id,
     LATERAL (SELECT b.attempted + CASE WHEN b.state = 'claimed' THEN
       greatest(0, b.size - b.sent - b.deferred - b.bounced - b.failed - b.unknown - b.suppressed - b.cancelled)
       ELSE 0 END AS mails) AS n
WHERE b.done_at >= $1 OR b.state <> 'done'
GROUP BY b.user_id HAVING sum(n.mails) > 0

-- name: mails_by_sending_domain
-- As mails_by_user. A single mail has its sender itself: these are counted one by one.
SELECT d.target, sum(d.mails)::bigint AS mails FROM (
  SELECT lower(split_part(s.sender ->> 'email', '@', 2)) AS target,
         b.attempted + CASE WHEN b.state = 'claimed' THEN
           greatest(0, b.size - b.sent - b.deferred - b.bounced - b.failed - b.unknown - b.suppressed - b.cancelled)
           ELSE 0 END AS mails
  FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
  WHERE (b.done_at >= $1 OR b.state <> 'done') AND s.lane = 'campaign'
  UNION ALL
  SELECT lower(split_part(m.content -> 'sender' ->> 'email', '@', 2)), 1
  FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
  JOIN email_sends m ON m.send_id = b.send_id AND m.position >= b.first_position AND m.position < b.end_position
   AND (b.positions IS NULL OR m.position = ANY (b.positions))
  WHERE (b.done_at >= $1 OR b.state <> 'done') AND s.lane <> 'campaign'
    AND (m.attempted_at >= $1 OR m.state = 'queued' AND b.state = 'claimed')
) AS d GROUP BY d.target HAVING sum(d.mails) > 0

-- name: mails_by_recipient_domain
-- As mails_by_user, but mail by mail, by the primary key: no index has the domain.
SELECT split_part(m.email_key, '@', 2) AS target, count(*) AS mails
FROM campaign_send_batches b
JOIN email_sends m ON m.send_id = b.send_id AND m.position >= b.first_position AND m.position < b.end_position
 AND (b.positions IS NULL OR m.position = ANY (b.positions))
WHERE (b.done_at >= $1 OR b.state <> 'done') AND (m.attempted_at >= $1 OR m.state = 'queued' AND b.state = 'claimed')
GROUP BY 1

-- name: mails_by_relay
-- As mails_by_recipient_domain; what is in hand counts for the relay its send names. A user's own relay is called user/name
-- (core/relays.py: limit_target).
SELECT coalesce(r.user_id || '/', '') || n.name AS target, count(*) AS mails
FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
JOIN email_sends m ON m.send_id = b.send_id AND m.position >= b.first_position AND m.position < b.end_position
 AND (b.positions IS NULL OR m.position = ANY (b.positions))
CROSS JOIN LATERAL (SELECT coalesce(CASE WHEN m.attempted_at >= $1 THEN m.relay END, s.relay, '') AS name) AS n
LEFT JOIN relays r ON r.user_id = b.user_id AND r.name = n.name
WHERE (b.done_at >= $1 OR b.state <> 'done') AND (m.attempted_at >= $1 OR m.state = 'queued' AND b.state = 'claimed')
GROUP BY 1

-- name: imports_by_user
-- For counters that Redis lost: imports begun since $1.
SELECT user_id AS target, count(*) AS mails FROM lead_imports WHERE created_at >= $1 GROUP BY user_id
