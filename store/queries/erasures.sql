-- name: start_erasure
-- The proof, before anything else: an erasure that broke off is seen by its missing end. `address` is what stands for the
-- address from now on.
INSERT INTO erasures (user_id, address, requested_by)
SELECT $1, erased_key(k.key, $1, $2), $3 FROM privacy_key k RETURNING id, address

-- name: suppress_erased
-- Of all steps the first: whoever reads a mail's address from here on finds that it must not be written to. What kept the
-- address from being written to before is an address, too. Primary key.
WITH plain AS (DELETE FROM suppressions WHERE user_id = $1 AND email_key = $2 RETURNING email_key),
added AS (
  INSERT INTO suppressions (user_id, email_key, reason, source) VALUES ($1, $3, 'erased', 'erasure')
  ON CONFLICT (user_id, email_key) DO NOTHING
)
SELECT count(*)::integer FROM plain

-- name: erase_lead
-- Primary key.
DELETE FROM leads WHERE user_id = $1 AND email_key = $2 RETURNING email

-- name: wait_for_intake
-- Behind the two above: waits for the pages of recipients that are being written just now, and may have read what was before
-- (campaign_sends_receiving, campaign_sends_running). Later ones know.
SELECT s.id FROM campaign_sends s WHERE s.id = ANY (ARRAY(
  SELECT c.id FROM campaign_sends c WHERE c.user_id = $1 AND c.lane = 'campaign' AND c.state = 'receiving'
  UNION ALL
  SELECT d.id FROM campaign_sends d WHERE d.user_id = $1 AND d.lane <> 'campaign' AND d.state = 'running'
)) FOR SHARE OF s

-- name: erase_mails
-- A page of mails (email_sends_address). Their states and counts stay. Those that wait are suppressed when their turn comes,
-- since what stands for the address is suppressed: so they end where all others do, counted once. `in_hand`: of these a
-- worker has read the address before; campaign_send_batches_open.
WITH page AS (
  SELECT m.send_id, m.position FROM email_sends m
  WHERE m.user_id = $1 AND m.email_key = $2 ORDER BY m.send_id, m.position LIMIT $4 FOR UPDATE
), erased AS (
  UPDATE email_sends m
  SET email = '', email_key = $3, name = '', variables = '{}', content = NULL, recipient_id = NULL, reply = NULL, history = NULL,
      bounce_reason = NULL
  FROM page WHERE m.send_id = page.send_id AND m.position = page.position
  RETURNING m.send_id, m.position, m.state
)
SELECT count(*)::integer AS mails,
       count(*) FILTER (WHERE e.state = 'queued' AND EXISTS (
         SELECT FROM campaign_send_batches b
         WHERE b.user_id = $1 AND b.state = 'claimed' AND b.send_id = e.send_id
           AND e.position >= b.first_position AND e.position < b.end_position
           AND (b.positions IS NULL OR e.position = ANY (b.positions))))::integer AS in_hand
FROM erased e

-- name: erase_checkpoints
-- Where materialising a selection has stopped (campaign_sends_of_campaign). Of one under way the checkpoint moves on by itself.
UPDATE campaign_sends SET selected_until = NULL WHERE user_id = $1 AND selected_until = $2 AND state <> 'receiving'
RETURNING id

-- name: imports_with_rejects
-- A page of a user's imports (lead_imports_by_user) that have rejected rows (primary key).
SELECT i.id FROM lead_imports i
WHERE i.user_id = $1 AND ($2::uuid IS NULL OR i.id > $2) AND EXISTS (SELECT FROM lead_rejects r WHERE r.import_id = i.id)
ORDER BY i.id LIMIT $3

-- name: erase_rejects
-- A page of an import's rejected rows, by the primary key. The row stays, with its number and code: the counts hold. One
-- that has no part of the address ($4) is not held against the pattern, which takes thirty times as long.
WITH page AS MATERIALIZED (
  SELECT r.row, CASE WHEN EXISTS (SELECT FROM unnest($4::text[]) AS part WHERE strpos(lower(r.content || r.reason), part) > 0)
                     THEN (r.content || E'\n' || r.reason) COLLATE pg_c_utf8 ~* $5 ELSE false END AS holds
  FROM lead_imports i JOIN lead_rejects r ON r.import_id = i.id
  WHERE i.id = $1 AND i.user_id = $2 AND r.row > $3 ORDER BY r.row LIMIT $6
), erased AS (
  UPDATE lead_rejects r SET content = '', reason = 'erased' FROM page p
  WHERE r.import_id = $1 AND r.row = p.row AND p.holds RETURNING r.row
)
SELECT max(p.row) AS last_row, (SELECT count(*) FROM erased)::integer AS erased FROM page p

-- name: erase_failed_mails
-- Behind erase_mails and in a statement of its own: of mails that failed until then ($2: what stands for the address;
-- email_sends_address, dead_letters_of_mail). What the relay said may name the address. None of them can be replayed.
UPDATE dead_letters d SET state = 'erased', error = 'erased'
FROM email_sends m
WHERE m.user_id = $1 AND m.email_key = $2 AND d.send_id = m.send_id AND d.position = m.position AND d.user_id = $1
  AND (d.state <> 'erased' OR d.error NOT IN ('', 'erased'))
RETURNING d.id

-- name: erase_dead_letters
-- A page of all records among the dead letters, by the primary key: not each says whose it is. One that holds the address is
-- this user's when it says so, has the user's id as its key, or is of an import of the user's (lead_imports_by_user). Where it was, and why it could
-- not be used, stays.
WITH page AS MATERIALIZED (
  SELECT d.id, encode(d.key, 'escape') AS key,
         concat_ws(E'\n', encode(d.key, 'escape'), encode(d.value, 'escape'),
                   encode(convert_to(d.headers::text || E'\n' || d.error, 'UTF8'), 'escape')) AS said
  FROM dead_letters d WHERE d.send_id IS NULL AND ($2::uuid IS NULL OR d.id > $2) ORDER BY d.id LIMIT $6
), mine AS (
  SELECT p.id FROM page p
  WHERE CASE WHEN EXISTS (SELECT FROM unnest($3::text[]) AS part WHERE strpos(lower(p.said), part) > 0)
             THEN p.said ~* $4 AND (
               p.said ~ $5 OR p.key = encode(convert_to($1, 'UTF8'), 'escape')
               OR EXISTS (SELECT FROM lead_imports i WHERE i.user_id = $1 AND i.id::text = split_part(p.key, ':', 1))) END
), erased AS (
  UPDATE dead_letters d
  SET state = 'erased', publish_at = NULL, value = NULL, key = CASE WHEN encode(d.key, 'escape') !~* $4 THEN d.key END, error = 'erased',
      headers = (SELECT coalesce(jsonb_object_agg(h.key, h.value), '{}') FROM jsonb_each_text(d.headers) AS h
                 WHERE h.key NOT IN ('x-exception-message', 'x-exception-stacktrace')
                   AND encode(convert_to(h.key || ' ' || h.value, 'UTF8'), 'escape') !~* $4)
  FROM mine m WHERE d.id = m.id RETURNING d.id
)
SELECT max(p.id::text)::uuid AS last_id, (SELECT count(*) FROM erased)::integer AS erased FROM page p

-- name: erase_answers
-- What writes with an Idempotency-Key were answered holds what they wrote. A user's part of the primary key, of a week. The same
-- again would act again, as if it had come after its week.
DELETE FROM answers a
WHERE a.user_id = $1
  AND CASE WHEN EXISTS (SELECT FROM unnest($2::text[]) AS part WHERE strpos(lower(a.body), part) > 0)
           THEN a.body COLLATE pg_c_utf8 ~* $3 ELSE false END
RETURNING a.idempotency_key

-- name: imports_under_way
-- lead_imports_counting. Their chunks on Kafka may hold the address still.
SELECT count(*)::integer FROM lead_imports WHERE user_id = $1 AND state IN ('receiving', 'received')

-- name: finish_erasure
-- What was erased, by table. Primary key.
UPDATE erasures SET finished_at = now(), erased = $3::jsonb WHERE id = $1 AND user_id = $2
