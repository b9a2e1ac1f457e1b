-- name: check_sends
-- The sends whose mails are looked at: those that are not over, and those that ended since $1, of months that are attached (from
-- $2 to $3). Reads all sends, which are few beside their mails.
SELECT s.id FROM campaign_sends s
WHERE (s.ended_at IS NULL OR s.ended_at >= $1)
  AND EXISTS (SELECT FROM unnest($2::uuid[], $3::uuid[]) AS month (low, high) WHERE s.id >= month.low AND s.id < month.high)
ORDER BY s.id

-- name: lock_checked_sends
-- Before a repair, in its transaction and in a statement of its own: what was released until now is seen by the next one, and
-- nothing more is. In one order for all who lock several.
SELECT id FROM campaign_sends WHERE id = ANY ($1::uuid[]) ORDER BY id FOR NO KEY UPDATE

-- name: check_recipients
-- Rows by the primary key. Positions begin at 0 and have no gap, so that their number and the last one say enough.
SELECT s.id, 'send ' || s.id AS at,
       format('recipients says %s, there are %s mails, at positions up to %s', s.recipients, coalesce(m.mails, 0), m.last) AS what
FROM campaign_sends s
LEFT JOIN (SELECT send_id, count(*) AS mails, max(position) AS last FROM email_sends WHERE send_id = ANY ($1::uuid[]) GROUP BY send_id)
  AS m ON m.send_id = s.id
WHERE s.id = ANY ($1::uuid[]) AND (s.recipients <> coalesce(m.mails, 0) OR s.recipients <> coalesce(m.last, -1) + 1)
ORDER BY s.id LIMIT $2

-- name: check_cursors
-- campaign_send_batches_send_id_number_key. Batches of a range lie one behind the other, up to the cursor.
SELECT s.id, 'send ' || s.id AS at,
       CASE WHEN s.next_position <> b.high THEN format('the cursor is at %s, batches reach to %s', s.next_position, b.high)
            WHEN b.covered <> b.high THEN format('batches up to %s hold %s positions', b.high, b.covered)
            ELSE format('batch %s would be the next, and is there', s.next_batch) END AS what
FROM campaign_sends s, LATERAL (
  SELECT coalesce(max(o.end_position) FILTER (WHERE o.positions IS NULL), 0) AS high,
         coalesce(sum(o.end_position - o.first_position) FILTER (WHERE o.positions IS NULL), 0) AS covered,
         coalesce(max(o.number) + 1, 0) AS number
  FROM campaign_send_batches o WHERE o.send_id = s.id) AS b
WHERE s.id = ANY ($1::uuid[]) AND (s.next_position <> b.high OR b.covered <> b.high OR s.next_batch < b.number)
ORDER BY s.id LIMIT $2

-- name: mend_cursors
-- To where the batches reach. Behind lock_checked_sends.
UPDATE campaign_sends s SET next_position = b.high, next_batch = greatest(s.next_batch, b.number)
FROM (
  SELECT o.send_id, coalesce(max(o.end_position) FILTER (WHERE o.positions IS NULL), 0) AS high, max(o.number) + 1 AS number
  FROM campaign_send_batches o WHERE o.send_id = ANY ($1::uuid[]) GROUP BY o.send_id
  UNION ALL
  SELECT n.id, 0, 0 FROM campaign_sends n
  WHERE n.id = ANY ($1::uuid[]) AND NOT EXISTS (SELECT FROM campaign_send_batches o WHERE o.send_id = n.id)
) AS b
WHERE s.id = b.send_id AND (s.next_position <> b.high OR s.next_batch < b.number)
RETURNING s.user_id

-- name: check_lost_mails
-- Queued mails before the cursor that no open batch holds (campaign_send_batches_open): nobody would ever send them.
SELECT s.id, 'send ' || s.id || ' position ' || m.position AS at, 'queued, released, and in no open batch' AS what
FROM campaign_sends s JOIN email_sends m ON m.send_id = s.id
WHERE s.id = ANY ($1::uuid[]) AND m.state = 'queued' AND m.position < s.next_position
  AND NOT EXISTS (SELECT FROM campaign_send_batches b
                  WHERE b.user_id = s.user_id AND b.state <> 'done' AND b.send_id = s.id
                    AND m.position >= b.first_position AND m.position < b.end_position
                    AND (b.positions IS NULL OR m.position = ANY (b.positions)))
ORDER BY s.id, m.position LIMIT $2

-- name: free_lost_mails
-- Of a send that is locked (lock_checked_sends): they are due at once. What was marked as tried may have arrived, and is unknown
-- where the send must not send twice; what was cancelled ends as that. A batch of no mails, done from the start, holds their counts, as
-- in retry_mails.
WITH lost AS (
  SELECT m.position,
         CASE WHEN s.state = 'cancelled' THEN 'cancelled' WHEN m.tried AND s.on_doubt = 'skip' THEN 'unknown' ELSE 'deferred' END
           AS state
  FROM campaign_sends s JOIN email_sends m ON m.send_id = s.id
  WHERE s.id = $1 AND m.send_id = $1 AND m.state = 'queued' AND m.position < s.next_position
    AND NOT EXISTS (SELECT FROM campaign_send_batches b
                    WHERE b.user_id = s.user_id AND b.state <> 'done' AND b.send_id = $1
                      AND m.position >= b.first_position AND m.position < b.end_position
                      AND (b.positions IS NULL OR m.position = ANY (b.positions)))
  FOR UPDATE OF m
), freed AS (
  UPDATE email_sends m
  SET state = l.state, outcome_at = now(), due_at = CASE WHEN l.state = 'deferred' THEN now() END
  FROM lost l WHERE m.send_id = $1 AND m.position = l.position RETURNING m.state
), counted AS (
  SELECT count(*)::integer AS mails, count(*) FILTER (WHERE state = 'deferred')::integer AS deferred,
         count(*) FILTER (WHERE state = 'unknown')::integer AS unknown,
         count(*) FILTER (WHERE state = 'cancelled')::integer AS cancelled
  FROM freed
), told AS (
  INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, size, state, deferred, unknown,
                                     cancelled, published_at, done_at)
  SELECT uuidv7(), s.id, s.user_id, s.next_batch, 0, 0, 0, 'done', c.deferred, c.unknown, c.cancelled, now(), now()
  FROM campaign_sends s, counted c WHERE s.id = $1 AND c.mails > 0
), moved AS (
  UPDATE campaign_sends s SET next_batch = s.next_batch + 1 FROM counted c WHERE s.id = $1 AND c.mails > 0
)
SELECT c.mails, s.user_id FROM counted c, campaign_sends s WHERE s.id = $1

-- name: check_counts
-- Mails by state (the primary key of email_sends) less what the batches and the intake say of them; only where they differ. One
-- statement: outcomes and counts are written by one, too.
WITH mails AS (
  SELECT send_id, count(*) FILTER (WHERE state = 'sent') AS sent, count(*) FILTER (WHERE state = 'deferred') AS deferred,
         count(*) FILTER (WHERE state = 'bounced') AS bounced, count(*) FILTER (WHERE state = 'failed') AS failed,
         count(*) FILTER (WHERE state = 'unknown') AS unknown, count(*) FILTER (WHERE state = 'suppressed') AS suppressed,
         count(*) FILTER (WHERE state = 'cancelled') AS cancelled, count(*) FILTER (WHERE state = 'duplicate') AS duplicate,
         count(*) FILTER (WHERE state = 'invalid') AS invalid
  FROM email_sends WHERE send_id = ANY ($1::uuid[]) GROUP BY send_id
), told AS (
  SELECT send_id, sum(sent) AS sent, sum(deferred) - coalesce(sum(cardinality(positions)), 0) AS deferred,
         sum(bounced) AS bounced, sum(failed) AS failed, sum(unknown) AS unknown, sum(suppressed) AS suppressed,
         sum(cancelled) AS cancelled
  FROM campaign_send_batches WHERE send_id = ANY ($1::uuid[]) GROUP BY send_id
), compared AS (
  SELECT s.id, coalesce(m.sent, 0) - coalesce(t.sent, 0) AS sent, coalesce(m.deferred, 0) - coalesce(t.deferred, 0) AS deferred,
         coalesce(m.bounced, 0) - coalesce(t.bounced, 0) AS bounced, coalesce(m.failed, 0) - coalesce(t.failed, 0) AS failed,
         coalesce(m.unknown, 0) - coalesce(t.unknown, 0) AS unknown,
         coalesce(m.suppressed, 0) - coalesce(t.suppressed, 0) - s.suppressed AS suppressed,
         coalesce(m.cancelled, 0) - coalesce(t.cancelled, 0) AS cancelled,
         coalesce(m.duplicate, 0) - s.duplicate AS duplicate, coalesce(m.invalid, 0) - s.invalid AS invalid
  FROM campaign_sends s LEFT JOIN mails m ON m.send_id = s.id LEFT JOIN told t ON t.send_id = s.id
  WHERE s.id = ANY ($1::uuid[])
)
SELECT id, sent::integer, deferred::integer, bounced::integer, failed::integer, unknown::integer, suppressed::integer,
       cancelled::integer, duplicate::integer, invalid::integer
FROM compared c
WHERE (sent, deferred, bounced, failed, unknown, suppressed, cancelled, duplicate, invalid) <> (0, 0, 0, 0, 0, 0, 0, 0, 0)
ORDER BY id LIMIT $2

-- name: correct_counts
-- A batch of no mails, done from the start, holds the difference: sums over batches are right again. What recipients came to on
-- their way in is on the send, which is locked.
WITH moved AS (
  UPDATE campaign_sends s SET duplicate = s.duplicate + $9, invalid = s.invalid + $10, next_batch = s.next_batch + 1
  WHERE s.id = $1 RETURNING s.id, s.user_id, s.next_batch - 1 AS number
)
INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, size, state, sent, deferred, bounced,
                                   failed, unknown, suppressed, cancelled, published_at, done_at)
SELECT uuidv7(), moved.id, moved.user_id, moved.number, 0, 0, 0, 'done', $2, $3, $4, $5, $6, $7, $8, now(), now() FROM moved

-- name: check_ended_sends
-- Sends that are over while something of them is not (campaign_send_batches_open, email_sends_due).
SELECT s.id, 'send ' || s.id AS at,
       s.state || ', and ' || concat_ws(', ', nullif(s.recipients - s.next_position, 0) || ' mails not released',
                                        b.batches || ' batches open', m.mails || ' mails due') AS what
FROM campaign_sends s
LEFT JOIN LATERAL (SELECT nullif(count(*), 0) AS batches FROM campaign_send_batches o
                   WHERE o.user_id = s.user_id AND o.send_id = s.id AND o.state <> 'done') AS b ON true
LEFT JOIN LATERAL (SELECT nullif(count(*), 0) AS mails FROM email_sends e WHERE e.send_id = s.id AND e.due_at IS NOT NULL) AS m ON true
WHERE s.id = ANY ($1::uuid[]) AND s.ended_at IS NOT NULL AND s.state IN ('done', 'cancelled')
  AND (s.next_position < s.recipients OR b.batches > 0 OR m.mails > 0)
ORDER BY s.id LIMIT $2

-- name: reopen_ended_sends
-- Those that were done run on, those that were cancelled are taken up by maintenance again. A campaign with another active send has
-- one at a time: then it stays.
UPDATE campaign_sends s SET ended_at = NULL, state = CASE WHEN s.state = 'done' THEN 'running' ELSE s.state END
WHERE s.id = ANY ($1::uuid[]) AND s.ended_at IS NOT NULL
  AND (s.state = 'cancelled' OR s.state = 'done' AND (s.lane <> 'campaign' OR NOT EXISTS (
    SELECT FROM campaign_sends o WHERE o.user_id = s.user_id AND o.campaign_id = s.campaign_id AND o.lane = 'campaign'
      AND o.state IN ('receiving', 'running', 'paused'))))
RETURNING s.id, s.user_id, s.lane, s.state

-- name: check_due_times
-- A deferred mail without a due time waits for ever; a due time of any other would send it again, or as it is being sent.
SELECT m.send_id AS id, 'send ' || m.send_id || ' position ' || m.position AS at,
       CASE WHEN m.due_at IS NULL THEN 'deferred, and never due' ELSE m.state || ', and due at ' || m.due_at END AS what
FROM email_sends m
WHERE m.send_id = ANY ($1::uuid[]) AND (m.state = 'deferred') <> (m.due_at IS NOT NULL)
ORDER BY m.send_id, m.position LIMIT $2

-- name: mend_due_times
-- What is deferred is due at once, what is not is never due.
UPDATE email_sends m SET due_at = CASE WHEN m.state = 'deferred' THEN now() END
WHERE m.send_id = ANY ($1::uuid[]) AND (m.state = 'deferred') <> (m.due_at IS NOT NULL)
RETURNING m.user_id

-- name: check_mail_keys
-- Single mails whose key is gone before its time, by the primary key of both; and keys of no mail, of the last $3 hours' keys
-- (mail_keys_by_age) of these sends.
SELECT * FROM (
  SELECT m.send_id AS id, m.mail_id AS key, 'send ' || m.send_id || ' position ' || m.position AS at,
         CASE WHEN k.id IS NULL THEN 'a single mail without its key: the same record would make another one'
              ELSE format('its key says send %s position %s', k.send_id, k.position) END AS what
  FROM email_sends m LEFT JOIN mail_keys k ON k.id = m.mail_id
  WHERE m.send_id = ANY ($1::uuid[]) AND m.mail_id IS NOT NULL
    AND (k.id IS NULL AND uuid_extract_timestamp(m.send_id) > now() - interval '80 days'
         OR (k.send_id, k.position, k.user_id) <> (m.send_id, m.position, m.user_id))
  UNION ALL
  SELECT k.send_id, NULL, 'mail ' || k.id, format('its key says send %s position %s, where no mail is', k.send_id, k.position)
  FROM mail_keys k LEFT JOIN LATERAL (
    SELECT true AS found FROM email_sends m WHERE m.send_id = k.send_id AND m.position = k.position) AS m ON true
  WHERE k.created_at >= $3 AND k.send_id = ANY ($1::uuid[]) AND m.found IS NULL
) AS found ORDER BY at LIMIT $2

-- name: add_lost_keys
-- Of single mails that are there: their records cannot make them again.
INSERT INTO mail_keys (id, user_id, send_id, position)
SELECT m.mail_id, m.user_id, m.send_id, m.position FROM email_sends m
WHERE m.send_id = ANY ($1::uuid[]) AND m.mail_id = ANY ($2::uuid[]) ORDER BY m.mail_id
ON CONFLICT (id) DO NOTHING RETURNING id

-- name: check_held_batches
-- Claimed by a worker that is not there, may write nothing any more, or has been silent for a minute, which the rescuer should have seen
-- (campaign_send_batches_claimed).
SELECT coalesce(b.worker, '00000000-0000-0000-0000-000000000000'::uuid) AS id, 'batch ' || b.id || ' of send ' || b.send_id AS at,
       CASE WHEN w.id IS NULL THEN 'claimed by a worker that is not there'
            WHEN w.fenced_at IS NOT NULL THEN 'claimed by a worker that was fenced'
            WHEN w.stopped_at IS NOT NULL THEN 'claimed by a worker that has stopped'
            ELSE 'claimed by a worker that has been silent for more than a minute' END AS what
FROM campaign_send_batches b LEFT JOIN workers w ON w.id = b.worker
WHERE b.state = 'claimed' AND (w.id IS NULL OR w.heartbeat_at < now() - interval '1 minute')
ORDER BY b.id LIMIT $1

-- name: fence_holders
-- Before rescue_batches: these may write nothing any more. A batch of nobody is given to nobody's id. One that has been heard again
-- is none of them.
WITH named AS (
  UPDATE campaign_send_batches SET worker = '00000000-0000-0000-0000-000000000000' WHERE state = 'claimed' AND worker IS NULL
), fenced AS (
  UPDATE workers w SET fenced_at = coalesce(w.fenced_at, now())
  WHERE w.id = ANY ($1::uuid[]) AND w.heartbeat_at < now() - interval '1 minute' RETURNING w.id
)
SELECT id FROM fenced UNION SELECT g.id FROM unnest($1::uuid[]) AS g (id) WHERE NOT EXISTS (SELECT FROM workers w WHERE w.id = g.id)

-- name: check_sleepers
-- Users whose work nobody would take up: no due time, no lease, and no batch on its way whose end would wake them
-- (campaign_sends_running, campaign_send_batches_open, email_sends_due).
SELECT u.user_id, 'user ' || u.user_id AS at, 'has mails to release, and release does not know' AS what
FROM (SELECT DISTINCT s.user_id FROM campaign_sends s WHERE s.state = 'running') AS u
LEFT JOIN release_users r ON r.user_id = u.user_id
WHERE r.due_at IS NULL AND coalesce(r.leased_until, '-infinity') < now() - interval '5 seconds'
  AND NOT EXISTS (SELECT FROM campaign_send_batches b WHERE b.user_id = u.user_id AND b.state IN ('released', 'claimed'))
  AND (EXISTS (SELECT FROM campaign_sends s
               WHERE s.user_id = u.user_id AND s.state = 'running'
                 AND (s.next_position < s.recipients OR EXISTS (SELECT FROM email_sends m WHERE m.send_id = s.id AND m.due_at IS NOT NULL)))
       OR EXISTS (SELECT FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
                  WHERE b.user_id = u.user_id AND b.state = 'returned' AND s.state = 'running'))
ORDER BY u.user_id LIMIT $1

-- name: check_pointers
-- Batches whose pointers nobody has claimed for $1 seconds (campaign_send_batches_released). With what tells one publication from
-- the next: whoever has published again meanwhile is left alone.
SELECT b.id, b.send_id, b.epoch, b.size, b.user_id, s.lane, b.published_at, b.publications
FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
WHERE b.state = 'released' AND s.state = 'running'
  AND coalesce(b.published_at, b.released_at) < now() - make_interval(secs => $1)
ORDER BY b.id LIMIT $2

-- name: check_chunks
-- Chunks of imports under way that the broker has had for $1 seconds and no worker has stored (lead_import_batches_open), and that are
-- no dead letters (dead_letters_by_key).
SELECT b.import_id, b.number, b.rows, b.published_at
FROM lead_imports i JOIN lead_import_batches b ON b.import_id = i.id AND b.state = 'published'
WHERE i.state IN ('receiving', 'received') AND b.published_at < now() - make_interval(secs => $1)
  AND NOT EXISTS (SELECT FROM dead_letters d
                  WHERE d.topic = 'leads.chunks' AND d.key = convert_to(b.import_id || ':' || b.number, 'UTF8'))
ORDER BY b.import_id, b.number LIMIT $2

-- name: check_imports
-- Of imports that are not over, or ended since $1: chunks whose ends do not sum up to their rows, whose rejected rows are not those
-- that are kept, and imports that are not the sum of their chunks (primary keys).
WITH looked_at AS (
  SELECT i.* FROM lead_imports i WHERE i.ended_at IS NULL OR i.ended_at >= $1
), chunks AS (
  SELECT b.*, (SELECT count(*) FROM lead_rejects r
               WHERE r.import_id = b.import_id AND r.row >= b.first_row AND r.row < b.first_row + b.rows) AS kept
  FROM looked_at i JOIN lead_import_batches b ON b.import_id = i.id
)
SELECT * FROM (
  SELECT c.import_id AS id, c.number, format('import %s chunk %s', c.import_id, c.number) AS at,
         format('%s rows: %s stored, %s duplicate, %s rejected (%s are kept)', c.rows, c.stored, c.duplicate, c.rejected, c.kept) AS what
  FROM chunks c
  WHERE c.state = 'done' AND (c.stored + c.duplicate + c.rejected <> c.rows OR c.rejected <> c.kept)
  UNION ALL
  SELECT i.id, NULL, 'import ' || i.id,
         format('%s, with %s rows in %s chunks; its chunks are %s with %s rows, %s of them open', i.state, i.rows, i.chunks,
                coalesce(s.chunks, 0), coalesce(s.rows, 0), coalesce(s.open, 0))
  FROM looked_at i
  LEFT JOIN (SELECT import_id, count(*) AS chunks, sum(rows) AS rows, count(*) FILTER (WHERE state = 'published') AS open
             FROM chunks GROUP BY import_id) AS s ON s.import_id = i.id
  WHERE i.state = 'done' AND ((coalesce(s.chunks, 0), coalesce(s.rows, 0)) <> (i.chunks, i.rows) OR s.open > 0)
     OR i.state = 'received' AND (s.chunks > i.chunks OR s.chunks = i.chunks AND s.rows <> i.rows)
) AS found ORDER BY at LIMIT $2

-- name: mend_chunks
-- As the worker counts them: rejected are the rows that are kept as such, and what is neither stored nor rejected was there before.
UPDATE lead_import_batches b
SET rejected = k.kept, stored = least(b.stored, b.rows - k.kept), duplicate = greatest(0, b.rows - k.kept - b.stored)
FROM (
  SELECT c.import_id, c.number, (SELECT count(*)::integer FROM lead_rejects r
                                 WHERE r.import_id = c.import_id AND r.row >= c.first_row AND r.row < c.first_row + c.rows) AS kept
  FROM unnest($1::uuid[], $2::integer[]) AS g (import_id, number)
  JOIN lead_import_batches c ON c.import_id = g.import_id AND c.number = g.number
) AS k
WHERE b.import_id = k.import_id AND b.number = k.number AND b.state = 'done' RETURNING b.number

-- name: mend_imports
-- Where all chunks are there, their rows are the import's; where one is still open, or missing, it is not done.
UPDATE lead_imports i
SET rows = CASE WHEN s.chunks = i.chunks THEN s.rows ELSE i.rows END,
    state = CASE WHEN i.state = 'done' AND s.chunks < i.chunks THEN 'incomplete'
                 WHEN i.state = 'done' AND s.open > 0 THEN 'received' ELSE i.state END,
    ended_at = CASE WHEN i.state = 'done' AND s.chunks = i.chunks AND s.open > 0 THEN NULL ELSE i.ended_at END
FROM (
  SELECT g.id, count(b.number) AS chunks, coalesce(sum(b.rows), 0) AS rows, count(*) FILTER (WHERE b.state = 'published') AS open
  FROM unnest($1::uuid[]) AS g (id) LEFT JOIN lead_import_batches b ON b.import_id = g.id GROUP BY g.id
) AS s
WHERE i.id = s.id AND s.chunks <= i.chunks RETURNING i.id, i.user_id, i.state

-- name: check_send_progress
-- What is told of campaign sends ($1) beside what their batches sum up to (campaign_send_batches_send_id_number_key). Only those at
-- rest: all told for $2 seconds, and where nothing was told yet there is nothing to compare.
SELECT s.id, s.user_id, 'send' AS kind, s.state, s.recipients::bigint AS total, s.ended_at IS NOT NULL AS ended,
       p.operation_id IS NOT NULL AS known, coalesce(p.ended_at IS NOT NULL, false) AS settled, coalesce(p.counts, '{}')::text AS told,
       b.told_at IS NOT NULL AS begun, s.suppressed + b.suppressed AS suppressed, s.duplicate AS duplicate, s.invalid AS invalid,
       b.sent, b.bounced, b.failed, b.unknown, b.cancelled
FROM campaign_sends s LEFT JOIN progress_tracking p ON p.operation_id = s.id, LATERAL (
  SELECT max(o.announced_at) AS told_at, bool_and(o.announced_at IS NOT NULL) FILTER (WHERE o.done_at IS NOT NULL) AS all_told,
         coalesce(sum(o.sent), 0) AS sent, coalesce(sum(o.bounced), 0) AS bounced, coalesce(sum(o.failed), 0) AS failed,
         coalesce(sum(o.unknown), 0) AS unknown, coalesce(sum(o.suppressed), 0) AS suppressed,
         coalesce(sum(o.cancelled), 0) AS cancelled,
         bool_or(o.state <> 'done' AND (o.sent, o.bounced, o.failed, o.unknown, o.suppressed, o.cancelled) <> (0, 0, 0, 0, 0, 0)) AS half
  FROM campaign_send_batches o WHERE o.send_id = s.id) AS b
WHERE s.id = ANY ($1::uuid[]) AND s.lane = 'campaign' AND s.state <> 'receiving'
  AND coalesce(b.all_told, true) AND NOT coalesce(b.half, false)
  AND greatest(b.told_at, s.ended_at, s.created_at) < now() - make_interval(secs => $2)
ORDER BY s.id

-- name: check_import_progress
-- As check_send_progress, of imports that are not over or ended since $1 (primary key).
SELECT i.id, i.user_id, 'import' AS kind, i.state, i.rows AS total, i.ended_at IS NOT NULL AS ended,
       p.operation_id IS NOT NULL AS known, coalesce(p.ended_at IS NOT NULL, false) AS settled, coalesce(p.counts, '{}')::text AS told,
       b.told_at IS NOT NULL AS begun, b.stored, b.duplicate, b.rejected, b.dead
FROM lead_imports i LEFT JOIN progress_tracking p ON p.operation_id = i.id, LATERAL (
  SELECT max(o.announced_at) AS told_at, bool_and(o.announced_at IS NOT NULL) FILTER (WHERE o.done_at IS NOT NULL) AS all_told,
         coalesce(sum(o.stored), 0) AS stored, coalesce(sum(o.duplicate), 0) AS duplicate, coalesce(sum(o.rejected), 0) AS rejected,
         coalesce(sum(o.rows) FILTER (WHERE o.state = 'dead'), 0) AS dead
  FROM lead_import_batches o WHERE o.import_id = i.id) AS b
WHERE (i.ended_at IS NULL OR i.ended_at >= $1) AND coalesce(b.all_told, true)
  AND greatest(b.told_at, i.ended_at, i.created_at) < now() - make_interval(secs => $2)
ORDER BY i.id

-- name: tell_again
-- All that ended in these operations is told once more: whoever has counted it changes nothing, and whoever has not counts it now.
WITH batches AS (
  UPDATE campaign_send_batches SET announced_at = NULL WHERE send_id = ANY ($1::uuid[]) AND done_at IS NOT NULL RETURNING id
), chunks AS (
  UPDATE lead_import_batches SET announced_at = NULL WHERE import_id = ANY ($1::uuid[]) AND done_at IS NOT NULL RETURNING number
)
SELECT (SELECT count(*) FROM batches) + (SELECT count(*) FROM chunks)

-- name: check_untold
-- Ends that nobody was told of for $1 seconds (campaign_send_batches_unannounced, lead_import_batches_unannounced).
SELECT 'batch ' || b.id || ' of send ' || b.send_id AS at, 'done at ' || b.done_at || ', and not told' AS what
FROM campaign_send_batches b WHERE b.done_at < now() - make_interval(secs => $1) AND b.announced_at IS NULL
UNION ALL
SELECT format('import %s chunk %s', c.import_id, c.number), 'done at ' || c.done_at || ', and not told'
FROM lead_import_batches c WHERE c.done_at < now() - make_interval(secs => $1) AND c.announced_at IS NULL
ORDER BY at LIMIT $2

-- name: check_letters
-- Dead letters that should be on Kafka for $2 seconds and are not (dead_letters_to_publish); mails that failed and have none, and
-- letters that say a mail failed which did not (dead_letters_of_mail).
SELECT * FROM (
  SELECT d.id, 'dead letter ' || d.id AS at, 'was to be published at ' || coalesce(d.replayed_at, d.failed_at) AS what
  FROM dead_letters d
  WHERE d.publish_at IS NOT NULL AND coalesce(d.replayed_at, d.failed_at) < now() - make_interval(secs => $2)
  UNION ALL
  SELECT NULL, 'send ' || m.send_id || ' position ' || m.position, 'failed, and has no dead letter'
  FROM email_sends m
  WHERE m.send_id = ANY ($1::uuid[]) AND m.state = 'failed'
    AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.send_id = m.send_id AND d.position = m.position AND d.state <> 'replayed')
  UNION ALL
  SELECT NULL, 'dead letter ' || d.id, 'open, and its mail is ' || coalesce(m.state, 'not there')
  FROM dead_letters d LEFT JOIN LATERAL (
    SELECT e.state FROM email_sends e WHERE e.send_id = d.send_id AND e.position = d.position) AS m ON true
  WHERE d.send_id = ANY ($1::uuid[]) AND d.state = 'open' AND m.state IS DISTINCT FROM 'failed'
) AS found ORDER BY at LIMIT $3

-- name: hasten_letters
-- Due at once, whatever has been tried before. Primary key.
UPDATE dead_letters SET publish_at = now() WHERE id = ANY ($1::uuid[]) AND publish_at IS NOT NULL RETURNING id

-- name: add_lost_letters
-- Of mails that failed and have none. Why they failed is told by what the mail says of its last attempt.
INSERT INTO dead_letters (user_id, state, topic, send_id, position, mail_id, stage, kind, code, error, attempts, failed_at, publish_at)
SELECT m.user_id, CASE WHEN m.email = '' THEN 'erased' ELSE 'open' END,
       CASE WHEN s.lane = 'transactional' THEN $2 ELSE $3 END, m.send_id, m.position, m.mail_id,
       CASE WHEN m.relay IS NULL THEN 'render' ELSE 'smtp' END,
       CASE WHEN m.relay IS NULL OR m.code >= 500 THEN 'permanent' ELSE 'transient' END,
       CASE WHEN m.relay IS NULL THEN 'render' ELSE coalesce(m.enhanced_code, m.code::text, 'connection_lost') END,
       coalesce(m.reply, ''), greatest(m.attempts, 1), coalesce(m.outcome_at, now()), now()
FROM email_sends m JOIN campaign_sends s ON s.id = m.send_id
WHERE m.send_id = ANY ($1::uuid[]) AND m.state = 'failed'
  AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.send_id = m.send_id AND d.position = m.position AND d.state <> 'replayed')
RETURNING id

-- name: close_letters
-- Of mails that are not failed any more, or not there.
UPDATE dead_letters d SET state = 'replayed', replayed_at = coalesce(d.replayed_at, now()), publish_at = NULL
WHERE d.send_id = ANY ($1::uuid[]) AND d.state = 'open'
  AND NOT EXISTS (SELECT FROM email_sends e WHERE e.send_id = d.send_id AND e.position = d.position AND e.state = 'failed')
RETURNING d.id

-- name: check_suppressions
-- Addresses suppressed since $1 for a mail's bounce that is no bounce: the mail is not there, was never tried, or went to somebody else
-- (primary key). Reads all suppressions. What was erased is nobody's to compare, and of a mail that is tried again the last bounce is
-- in its history.
SELECT 'user ' || x.user_id || ', the address of ' || split_part(x.source, ':', 1) AS at,
       CASE WHEN m.state IS NULL THEN 'suppressed for the bounce of a mail that is not there'
            WHEN m.email_key <> x.email_key THEN 'suppressed for the bounce of a mail to another address'
            ELSE 'suppressed for the bounce of a mail that is ' || m.state END AS what
FROM suppressions x
CROSS JOIN LATERAL (SELECT regexp_match(x.source, '^mail ([0-9a-f-]{36})/([0-9]{1,9}):') AS at) AS place
LEFT JOIN LATERAL (
  SELECT e.state, e.email, e.email_key, e.bounced_at, e.attempts, e.history FROM email_sends e
  WHERE e.send_id = (place.at[1])::uuid AND e.position = (place.at[2])::integer) AS m ON true
WHERE x.reason = 'bounce' AND x.created_at >= $1 AND place.at IS NOT NULL
  AND EXISTS (SELECT FROM unnest($2::uuid[], $3::uuid[]) AS month (low, high)
              WHERE (place.at[1])::uuid >= month.low AND (place.at[1])::uuid < month.high)
  AND (m.state IS NULL OR m.email <> '' AND (m.email_key <> x.email_key
       OR m.state <> 'bounced' AND m.bounced_at IS NULL AND m.history IS NULL))
ORDER BY x.user_id, x.email_key LIMIT $4

-- name: check_wire
-- Mails that surely went on the wire since $1, by user: of batches that were claimed since then, once. Fewer than went rather than
-- more (campaign_send_batches_ended, campaign_send_batches_open).
SELECT b.user_id, coalesce(sum(b.attempted), 0)::bigint AS mails,
       coalesce(sum(b.attempted) FILTER (WHERE s.lane <> 'transactional'), 0)::bigint AS bulk
FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
WHERE (b.done_at >= $1 OR b.state <> 'done') AND b.epoch = 1 AND b.claimed_at >= $1 AND b.size > 0
GROUP BY b.user_id HAVING sum(b.attempted) > 0

-- name: what_waits
-- Seconds that the oldest thing has waited that maintenance does (campaign_send_batches_unannounced,
-- lead_import_batches_unannounced, dead_letters_to_publish), and that the first user is due who is not leased (release_users_due). Null:
-- nothing waits.
SELECT extract(epoch FROM now() - least(
         (SELECT min(b.done_at) FROM campaign_send_batches b WHERE b.done_at IS NOT NULL AND b.announced_at IS NULL),
         (SELECT min(c.done_at) FROM lead_import_batches c WHERE c.done_at IS NOT NULL AND c.announced_at IS NULL),
         (SELECT min(d.publish_at) FROM dead_letters d WHERE d.publish_at IS NOT NULL)))::float8 AS for_maintenance,
       (SELECT extract(epoch FROM now() - min(r.due_at)) FROM release_users r
        WHERE r.due_at <= now() AND r.leased_until < now())::float8 AS for_release

-- name: server_state
-- Of the database as a whole. Where the data lies is not everybody's to know.
SELECT current_setting('server_version') AS version, extract(epoch FROM clock_timestamp())::float8 AS now,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::integer AS connections,
       current_setting('max_connections')::integer AS connections_max, pg_database_size(current_database()) AS bytes,
       CASE WHEN pg_has_role('pg_read_all_settings', 'USAGE') THEN current_setting('data_directory') END AS folder

-- name: living_workers
-- By kind, those with a heartbeat in the last 20 s (workers_living).
SELECT kind, count(*)::integer AS living FROM workers
WHERE fenced_at IS NULL AND stopped_at IS NULL AND heartbeat_at > now() - interval '20 seconds' GROUP BY kind
