-- name: add_suppressions
-- A stronger reason takes a weaker one's place, else the first one stays. What stops all mail is stronger than what stops bulk
-- alone. An erased address stays erased: as such it would be written down again. In the order of keys, so that two writers wait
-- for one another at most. Primary key. Who listens (watch_suppressions) is told once the
-- transaction commits: of a few each, of many whose they are, which is one message.
WITH given AS (
  SELECT DISTINCT ON (g.email_key COLLATE "C") g.email_key, g.reason, g.source
  FROM unnest($2::text[], $3::text[], $4::text[]) WITH ORDINALITY AS g (email_key, reason, source, number)
  ORDER BY g.email_key COLLATE "C", array_position('{unsubscribe,complaint,bounce,manual,erased}', g.reason) DESC, g.number
), written AS (
  INSERT INTO suppressions AS s (user_id, email_key, reason, source)
  SELECT $1, g.email_key, g.reason, g.source FROM given g
  -- OFFSET 0: one by one, or all suppressions would be read and sorted.
  WHERE NOT EXISTS (SELECT FROM suppressions e
                    WHERE e.user_id = $1
                      AND e.email_key = erased_key((SELECT k.key FROM privacy_key k), $1, g.email_key) OFFSET 0)
  ORDER BY g.email_key COLLATE "C"
  ON CONFLICT (user_id, email_key) DO UPDATE SET reason = excluded.reason, source = excluded.source, created_at = now()
  WHERE array_position('{unsubscribe,complaint,bounce,manual,erased}', excluded.reason)
      > array_position('{unsubscribe,complaint,bounce,manual,erased}', s.reason)
  RETURNING s.xmax = 0 AS added, s.email_key
)
SELECT count(*) FILTER (WHERE added)::integer AS added, count(*) FILTER (WHERE NOT added)::integer AS replaced,
       count(pg_notify('suppressions', CASE WHEN many <= 10 THEN $1 || E'\n' || email_key ELSE $1 END)::text)
FROM (SELECT w.*, count(*) OVER () AS many FROM written w) AS w

-- name: suppressed_in_hand
-- Of batches that a worker has read, the mails that by now must not go, as read_batch has it: by its primary key, and theirs.
SELECT b.id, m.position
FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
CROSS JOIN LATERAL unnest(coalesce(b.positions, ARRAY(SELECT generate_series(b.first_position, b.end_position - 1)))) AS p (position)
JOIN email_sends m ON m.send_id = b.send_id AND m.position = p.position
WHERE b.id = ANY ($1::uuid[]) AND m.state = 'queued'
  AND (m.email = '' OR EXISTS (SELECT FROM suppressed_by(b.user_id, m.email_key) AS x
                               WHERE s.lane <> 'transactional' OR x.reason NOT IN ('unsubscribe', 'complaint')))

-- name: suppress_bounced
-- Of a send's mails at these positions, those that have bounced, in the transaction that says so; as add_suppressions.
-- Primary key.
INSERT INTO suppressions AS s (user_id, email_key, reason, source)
SELECT m.user_id, m.email_key, 'bounce', concat_ws(' ', 'mail', m.send_id || '/' || m.position || ':', m.code, m.enhanced_code)
FROM email_sends m
WHERE m.send_id = $1 AND m.position = ANY ($2::integer[]) AND m.state = 'bounced' AND m.email <> ''
  AND NOT EXISTS (SELECT FROM suppressions e
                  WHERE e.user_id = m.user_id
                    AND e.email_key = erased_key((SELECT k.key FROM privacy_key k), m.user_id, m.email_key) OFFSET 0)
ORDER BY m.user_id, m.email_key
ON CONFLICT (user_id, email_key) DO UPDATE SET reason = excluded.reason, source = excluded.source, created_at = now()
WHERE array_position('{unsubscribe,complaint,bounce,manual,erased}', excluded.reason)
    > array_position('{unsubscribe,complaint,bounce,manual,erased}', s.reason)

-- name: list_suppressions
-- A slice of the primary key ($3 rows) behind a key ($2), as far as it fits; the last row of the slice comes in any case, to
-- tell where to go on. `''` as the user: those for everybody. Erased addresses are nobody's to see.
WITH slice AS MATERIALIZED (
  SELECT s.email_key, s.reason, s.source, s.created_at,
         s.reason <> 'erased' AND ($5::text IS NULL OR s.reason = $5)
         AND ($6::timestamptz IS NULL OR s.created_at >= $6) AS fits,
         row_number() OVER (ORDER BY s.email_key) = $3 AS last
  FROM suppressions s WHERE s.user_id = $1 AND s.email_key > $2 ORDER BY s.email_key LIMIT $3
)
SELECT * FROM slice WHERE fits OR last ORDER BY email_key LIMIT $4

-- name: read_suppression
-- Primary key.
SELECT email_key, reason, source, created_at FROM suppressions WHERE user_id = $1 AND email_key = $2 AND reason <> 'erased'

-- name: remove_suppression
-- Primary key.
DELETE FROM suppressions WHERE user_id = $1 AND email_key = $2 AND reason <> 'erased'
RETURNING email_key, reason, source, created_at

-- name: is_erased
-- Whether what stands for an address once it is erased is there. Primary key.
SELECT EXISTS (SELECT FROM suppressions x
               WHERE x.user_id = $1 AND x.email_key = (SELECT erased_key(k.key, $1, $2) FROM privacy_key k))
