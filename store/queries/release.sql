-- name: lease_users
-- Takes users whose work is due, for five seconds (release_users_due). SKIP LOCKED: loops do not wait for one another.
UPDATE release_users r SET leased_until = now() + interval '5 seconds', leased_by = $1
FROM (
  SELECT user_id FROM release_users WHERE due_at <= now() AND leased_until < now()
  ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
) AS due
WHERE r.user_id = due.user_id
RETURNING r.user_id, r.weight, r.competing, r.wakes

-- name: releasable_sends
-- Running sends of the leased users, in the order of their release (campaign_sends_running). `due`: deferred mails whose time
-- has come, a thousand at most; seconds until the next of them is, and until the send may begin (email_sends_due).
SELECT s.id, s.user_id, s.lane, s.priority, s.next_position, s.recipients,
       extract(epoch FROM s.start_at - now())::float8 AS starts_in,
       (SELECT count(*) FROM (SELECT FROM email_sends m WHERE m.send_id = s.id AND m.due_at <= now() LIMIT 1000) AS d)::integer
         AS due,
       (SELECT extract(epoch FROM m.due_at - now())::float8 FROM email_sends m WHERE m.send_id = s.id AND m.due_at > now()
        ORDER BY m.due_at LIMIT 1) AS due_in
FROM campaign_sends s WHERE s.user_id = ANY ($1::text[]) AND s.state = 'running' ORDER BY s.user_id, s.priority, s.id

-- name: open_mails
-- What is on its way for each of the leased users, by send, and what waits to be reopened, now or in so many seconds
-- (campaign_send_batches_open).
SELECT b.user_id, b.send_id,
       coalesce(sum(b.size - b.sent - b.deferred - b.bounced - b.failed - b.unknown - b.suppressed)
                FILTER (WHERE b.state IN ('released', 'claimed')), 0)::integer AS on_the_way,
       count(*) FILTER (WHERE b.state = 'returned' AND b.not_before <= now())::integer AS returned,
       extract(epoch FROM min(b.not_before) FILTER (WHERE b.state = 'returned' AND b.not_before > now()) - now())::float8
         AS returns_in,
       coalesce(sum(b.size - b.sent - b.deferred - b.bounced - b.failed - b.unknown - b.suppressed)
                FILTER (WHERE b.state = 'released' AND b.released_at < now() - interval '400 milliseconds'), 0)::integer AS unclaimed
FROM campaign_send_batches b WHERE b.user_id = ANY ($1::text[]) AND b.state <> 'done' GROUP BY b.user_id, b.send_id

-- name: returned_batches
-- Of sends that have some: the first hundred each, with the mails they still have to do (campaign_send_batches_open).
SELECT b.id, b.send_id, b.epoch, b.mails FROM unnest($1::uuid[], $2::text[]) AS s (send_id, user_id), LATERAL (
  SELECT b.id, b.send_id, b.epoch, b.size - b.sent - b.deferred - b.bounced - b.failed - b.unknown - b.suppressed AS mails
  FROM campaign_send_batches b
  WHERE b.user_id = s.user_id AND b.send_id = s.send_id AND b.state = 'returned' AND b.not_before <= now()
  ORDER BY b.number LIMIT 100) AS b

-- name: lock_sends
-- Those that still run and may begin, in one order for all who lock several. A pause waits for the batches of this transaction,
-- and returns them.
SELECT id FROM campaign_sends
WHERE id = ANY ($1::uuid[]) AND state = 'running' AND (start_at IS NULL OR start_at <= now())
ORDER BY id FOR NO KEY UPDATE

-- name: release_batches
-- Cursors move and batches appear in one statement. A send whose cursor is elsewhere by now ($2), or which does not run
-- any more, gets none.
WITH moved AS (
  UPDATE campaign_sends s SET next_position = cut.end_position, next_batch = s.next_batch + cut.batches
  FROM unnest($1::uuid[], $2::integer[], $3::integer[], $4::integer[]) AS cut (send_id, next_position, end_position, batches)
  WHERE s.id = cut.send_id AND s.next_position = cut.next_position AND s.state = 'running'
  RETURNING s.id, s.user_id, s.lane, s.next_batch - cut.batches AS first_batch
), made AS (
  INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, size)
  SELECT b.id, moved.id, moved.user_id, moved.first_batch + b.number, b.first_position, b.end_position,
         b.end_position - b.first_position
  FROM unnest($5::uuid[], $6::uuid[], $7::integer[], $8::integer[], $9::integer[])
       AS b (id, send_id, number, first_position, end_position)
  JOIN moved ON moved.id = b.send_id
  RETURNING id, send_id, epoch, size
)
SELECT made.id, made.send_id, made.epoch, made.size, moved.user_id, moved.lane FROM made JOIN moved ON moved.id = made.send_id

-- name: release_due
-- Deferred mails whose time has come become batches, and are queued again (email_sends_due, then the primary key). Left out:
-- those of a batch that is still open, which would read them as its own when it comes back (campaign_send_batches_open). Its
-- end wakes the loop.
WITH due AS MATERIALIZED (
  SELECT a.send_id, a.size, m.position
  FROM unnest($1::uuid[], $2::integer[], $3::integer[]) AS a (send_id, mails, size)
  JOIN campaign_sends s ON s.id = a.send_id AND s.state = 'running',
  LATERAL (
    SELECT m.position FROM email_sends m
    WHERE m.send_id = a.send_id AND m.due_at <= now()
      AND NOT EXISTS (SELECT FROM campaign_send_batches b
                      WHERE b.user_id = s.user_id AND b.state <> 'done' AND b.send_id = s.id
                        AND m.position >= b.first_position AND m.position < b.end_position
                        AND (b.positions IS NULL OR m.position = ANY (b.positions)))
    ORDER BY m.due_at LIMIT a.mails FOR UPDATE SKIP LOCKED) AS m
), queued AS (
  UPDATE email_sends m SET state = 'queued', due_at = NULL, tried = false
  FROM due WHERE m.send_id = due.send_id AND m.position = due.position RETURNING m.send_id, m.position, due.size
), numbered AS (
  SELECT send_id, position, (row_number() OVER (PARTITION BY send_id ORDER BY position) - 1)::integer / size AS number
  FROM queued
), batch AS (
  SELECT send_id, number, array_agg(position ORDER BY position) AS positions, min(position) AS low, max(position) AS high
  FROM numbered GROUP BY send_id, number
), moved AS (
  UPDATE campaign_sends s SET next_batch = s.next_batch + b.batches
  FROM (SELECT send_id, count(*)::integer AS batches FROM batch GROUP BY send_id) AS b WHERE s.id = b.send_id
  RETURNING s.id, s.user_id, s.lane, s.next_batch - b.batches AS first_batch
), made AS (
  INSERT INTO campaign_send_batches (id, send_id, user_id, number, first_position, end_position, positions, size)
  SELECT uuidv7(), moved.id, moved.user_id, moved.first_batch + batch.number, batch.low, batch.high + 1, batch.positions,
         cardinality(batch.positions)
  FROM batch JOIN moved ON moved.id = batch.send_id
  RETURNING id, send_id, epoch, size
)
SELECT made.id, made.send_id, made.epoch, made.size, moved.user_id, moved.lane FROM made JOIN moved ON moved.id = made.send_id

-- name: reopen_batches
-- Returned batches of running sends are released again, with the next epoch. Who reopens one twice finds another epoch.
UPDATE campaign_send_batches b
SET state = 'released', epoch = b.epoch + 1, released_at = now(), published_at = NULL, publications = 0, worker = NULL
FROM unnest($1::uuid[], $2::integer[]) AS r (id, epoch), campaign_sends s
WHERE b.id = r.id AND b.epoch = r.epoch AND b.state = 'returned' AND s.id = b.send_id AND s.state = 'running'
RETURNING b.id, b.send_id, b.epoch, b.size, b.user_id, s.lane

-- name: mark_published
UPDATE campaign_send_batches b SET published_at = now(), publications = b.publications + 1
FROM unnest($1::uuid[], $2::integer[]) AS p (id, epoch) WHERE b.id = p.id AND b.epoch = p.epoch

-- name: settle_users
-- Gives users back with the time of their next work. Who was woken meanwhile is due at once. Locked in one order: ends of
-- batches wake several users, too.
WITH mine AS (
  SELECT r.user_id, u.wakes, u.wait, u.competing
  FROM unnest($2::text[], $3::bigint[], $4::double precision[], $5::boolean[]) AS u (user_id, wakes, wait, competing)
  JOIN release_users r ON r.user_id = u.user_id AND r.leased_by = $1 ORDER BY r.user_id FOR UPDATE OF r
)
UPDATE release_users r
SET leased_until = '-infinity', leased_by = NULL, competing = mine.competing,
    due_at = CASE WHEN r.wakes <> mine.wakes THEN now() WHEN mine.wait IS NULL THEN NULL
                  ELSE now() + make_interval(secs => mine.wait) END
FROM mine WHERE r.user_id = mine.user_id AND r.leased_by = $1

-- name: wake_waiting
-- Batches of these users ended or came back, in this transaction. Who is due and not leased is not written: the lock keeps a
-- loop from leasing it before this transaction ends. Whether that is so the lock tells, not the statement's snapshot.
WITH woken AS (
  SELECT user_id, due_at IS NULL OR due_at > now() OR leased_until > now() AS sleeps
  FROM release_users WHERE user_id = ANY ($1::text[]) ORDER BY user_id FOR UPDATE
)
UPDATE release_users r SET due_at = least(r.due_at, now()), wakes = r.wakes + 1
FROM woken WHERE r.user_id = woken.user_id AND woken.sleeps

-- name: measure_release
-- A loop tells what it releases in a second, and hears what the others do, who wants more than their share
-- (release_users_competing), and how many workers there are (workers_living).
WITH told AS (
  INSERT INTO release_loops (id, mails_per_second) VALUES ($1, $2)
  ON CONFLICT (id) DO UPDATE SET mails_per_second = excluded.mails_per_second, seen_at = now()
), gone AS (
  DELETE FROM release_loops WHERE seen_at < now() - interval '1 hour'
)
SELECT (SELECT coalesce(sum(mails_per_second), 0) FROM release_loops
        WHERE id <> $1 AND seen_at > now() - interval '5 seconds')::float8 AS others,
       (SELECT count(*) FROM workers WHERE kind = 'emails' AND fenced_at IS NULL AND stopped_at IS NULL
          AND heartbeat_at > now() - interval '20 seconds')::integer AS workers,
       (SELECT count(*) FROM release_users WHERE competing)::integer AS users,
       (SELECT coalesce(sum(weight), 0) FROM release_users WHERE competing)::float8 AS weight

-- name: set_weight
-- The release loop reads it with the next lease.
INSERT INTO release_users (user_id, weight) VALUES ($1, $2)
ON CONFLICT (user_id) DO UPDATE SET weight = excluded.weight

-- name: batches_to_publish
-- A pointer that was lost between commit and Kafka: published again after 30 s, then 60, 120… (campaign_send_batches_released).
SELECT b.id, b.send_id, b.epoch, b.size, b.user_id, s.lane
FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
WHERE b.state = 'released' AND s.state = 'running'
  AND b.released_at < now() - interval '30 seconds'
  AND coalesce(b.published_at, b.released_at) < now() - make_interval(secs => 30 * power(2, least(b.publications, 6)))
ORDER BY b.released_at LIMIT $1

-- name: released_batches
-- All that wait for a worker, in the order of their ids, behind $1 (campaign_send_batches_released).
SELECT b.id, b.send_id, b.epoch, b.size, b.user_id, s.lane
FROM campaign_send_batches b JOIN campaign_sends s ON s.id = b.send_id
WHERE b.state = 'released' AND s.state = 'running' AND ($1::uuid IS NULL OR b.id > $1) ORDER BY b.id LIMIT $2

-- name: lock_finished_sends
-- Running sends with nothing left to release, under way or deferred (campaign_sends_running, then campaign_send_batches_open
-- and email_sends_due: not a send's batches that are done). One of single mails gets more of them for all of its UTC day,
-- which its id tells, and an hour, should clocks differ. Locked, for finish_sends.
SELECT s.id FROM campaign_sends s
WHERE s.state = 'running' AND s.next_position = s.recipients
  AND (s.lane = 'campaign' OR uuid_extract_timestamp(s.id) < now() - interval '25 hours')
  AND NOT EXISTS (SELECT FROM campaign_send_batches b WHERE b.user_id = s.user_id AND b.send_id = s.id AND b.state <> 'done')
  AND NOT EXISTS (SELECT FROM email_sends m WHERE m.send_id = s.id AND m.due_at IS NOT NULL)
ORDER BY s.id FOR NO KEY UPDATE SKIP LOCKED

-- name: finish_sends
-- They are done. Looked at once more, behind the lock and in a statement of its own: so it sees what a retry beside it has
-- made due.
UPDATE campaign_sends s SET state = 'done', ended_at = now()
WHERE s.id = ANY ($1::uuid[]) AND s.state = 'running' AND s.next_position = s.recipients
  AND NOT EXISTS (SELECT FROM campaign_send_batches b WHERE b.user_id = s.user_id AND b.send_id = s.id AND b.state <> 'done')
  AND NOT EXISTS (SELECT FROM email_sends m WHERE m.send_id = s.id AND m.due_at IS NOT NULL)
RETURNING s.id, s.user_id
