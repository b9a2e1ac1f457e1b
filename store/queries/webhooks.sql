-- name: create_webhook
-- No row: the user has one of this name, or $8 of them.
INSERT INTO webhooks (user_id, id, name, url, events, secret, state)
SELECT $1, $2, $3, $4, $5, $6, CASE WHEN $7::boolean THEN 'active' ELSE 'paused' END
WHERE (SELECT count(*) FROM webhooks WHERE user_id = $1) < $8
ON CONFLICT (user_id, name) DO NOTHING
RETURNING *

-- name: list_webhooks
-- All of a user's, or those for all users: there are few (webhooks_user_id_name_key).
SELECT * FROM webhooks WHERE user_id = $1 ORDER BY name

-- name: read_webhook
-- By the unique key.
SELECT * FROM webhooks WHERE user_id = $1 AND name = $2

-- name: lock_webhook
-- Before a change, in its transaction: two changes at once must not undo one another.
SELECT * FROM webhooks WHERE user_id = $1 AND name = $2 FOR UPDATE

-- name: change_webhook
-- One that the caller has locked. One that becomes active ($5 true) begins anew, with what still waits for it. Whoever has a lease
-- of it finds that by its `wakes`. With $5 null its state stays.
UPDATE webhooks w
SET url = $3, events = $4, state = CASE WHEN $5 THEN 'active' WHEN NOT $5 THEN 'paused' ELSE w.state END, updated_at = now(),
    wakes = w.wakes + 1,
    failures = CASE WHEN n.begins THEN 0 ELSE w.failures END,
    failing_since = CASE WHEN NOT n.begins THEN w.failing_since END,
    last_error = CASE WHEN NOT n.begins THEN w.last_error END,
    disabled_at = CASE WHEN NOT n.begins THEN w.disabled_at END,
    active_since = CASE WHEN n.begins THEN now() ELSE w.active_since END,
    due_at = CASE WHEN n.begins THEN now() ELSE w.due_at END
FROM (SELECT coalesce($5::boolean, false) AND state <> 'active' AS begins FROM webhooks WHERE user_id = $1 AND id = $2) AS n
WHERE w.user_id = $1 AND w.id = $2 RETURNING w.*

-- name: rotate_webhook
-- One that the caller has locked. The secret before is signed with, too, for $4 seconds more; 0: no more.
UPDATE webhooks w
SET secret = $3, updated_at = now(), old_secret = CASE WHEN $4 > 0 THEN w.secret END,
    old_secret_ends_at = CASE WHEN $4 > 0 THEN now() + make_interval(secs => $4) END
WHERE w.user_id = $1 AND w.id = $2 RETURNING *

-- name: remove_webhook
-- With its deliveries.
DELETE FROM webhooks WHERE user_id = $1 AND name = $2 RETURNING id

-- name: list_deliveries
-- Newest first by webhook_deliveries_of_webhook; $3 is the last id of the page before, or null.
SELECT d.id, d.type, d.user_id, d.events, d.created_at, d.attempts, d.attempted_at, d.code, d.error, d.answer, d.milliseconds,
       d.delivered_at
FROM webhooks w JOIN webhook_deliveries d ON d.webhook_id = w.id
WHERE w.user_id = $1 AND w.name = $2 AND ($3::uuid IS NULL OR d.id < $3) ORDER BY d.id DESC LIMIT $4

-- name: ask_test
-- A delivery out of the order of the others, of a webhook in any state.
INSERT INTO webhook_deliveries (id, webhook_id, user_id, type, events, body)
SELECT $3, w.id, w.user_id, 'test', 0, $4 FROM webhooks w WHERE w.user_id = $1 AND w.name = $2

-- name: read_test
-- Primary key.
SELECT d.id, d.type, d.user_id, d.events, d.created_at, d.attempts, d.attempted_at, d.code, d.error, d.answer, d.milliseconds,
       d.delivered_at
FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id
WHERE d.id = $2 AND w.user_id = $1

-- name: webhooks_of_users
-- Who is to be told of these users' events (webhooks_user_id_name_key). None of them is removed until the transaction ends.
SELECT id, user_id, events, active_since FROM webhooks WHERE user_id = ANY ($1::text[]) AND state = 'active' FOR KEY SHARE

-- name: lock_webhook_offset
-- The partition's row, made or locked until the transaction ends: whoever else has records of this partition, from before a
-- rebalance, waits here.
INSERT INTO webhook_offsets AS o (topic, partition) VALUES ($1, $2)
ON CONFLICT (topic, partition) DO UPDATE SET topic = o.topic
RETURNING next_offset, newest

-- name: move_webhook_offset
-- In the transaction that adds the deliveries.
UPDATE webhook_offsets SET next_offset = $3, newest = $4 WHERE topic = $1 AND partition = $2

-- name: add_deliveries
-- Of webhooks that webhooks_of_users has locked.
INSERT INTO webhook_deliveries (id, webhook_id, user_id, type, events, body)
SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::integer[], $6::text[])

-- name: wake_webhooks
-- In the transaction that added something for them, in one order for all. One that fails waits for its try all the same.
WITH woken AS (SELECT id FROM webhooks WHERE id = ANY ($1::uuid[]) ORDER BY id FOR NO KEY UPDATE)
UPDATE webhooks w SET due_at = coalesce(w.due_at, now()), wakes = w.wakes + 1 FROM woken WHERE w.id = woken.id

-- name: lease_webhooks
-- Takes webhooks that have something to do, for a minute (webhooks_due). SKIP LOCKED: processes do not wait for one another.
UPDATE webhooks w SET leased_until = now() + interval '60 seconds', leased_by = $1
FROM (
  SELECT id FROM webhooks WHERE due_at <= now() AND leased_until < now() AND state = 'active'
  ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
) AS due
WHERE w.id = due.id
RETURNING w.id, w.user_id, w.url, w.secret, CASE WHEN w.old_secret_ends_at > now() THEN w.old_secret END AS old_secret, w.wakes,
          w.failures, coalesce(extract(epoch FROM now() - w.failing_since), 0)::float8 AS failing_for

-- name: waiting_deliveries
-- The first ones, of a webhook that the caller has leased (webhook_deliveries_waiting).
SELECT id, body FROM webhook_deliveries WHERE webhook_id = $1 AND delivered_at IS NULL AND type <> 'test' ORDER BY id LIMIT $2

-- name: write_delivery
-- How a try went (primary keys). No row: the webhook is not this process's any more, or not active.
UPDATE webhook_deliveries d
SET attempts = d.attempts + 1, attempted_at = now(), code = $4, error = $5, answer = $6, milliseconds = $7,
    delivered_at = CASE WHEN $3 THEN now() END, body = CASE WHEN NOT $3 THEN d.body END
FROM webhooks w WHERE d.id = $1 AND w.id = d.webhook_id AND w.leased_by = $2 AND w.state = 'active' RETURNING d.id

-- name: settle_webhook
-- Gives a leased one back that took what it got, due at once where more waits, or came since it was leased
-- (webhook_deliveries_waiting).
UPDATE webhooks w
SET leased_until = '-infinity', leased_by = NULL,
    failures = CASE WHEN $4 THEN 0 ELSE w.failures END, failing_since = CASE WHEN NOT $4 THEN w.failing_since END,
    last_error = CASE WHEN NOT $4 THEN w.last_error END,
    due_at = CASE WHEN w.wakes <> $3 OR EXISTS (
      SELECT FROM webhook_deliveries d WHERE d.webhook_id = w.id AND d.delivered_at IS NULL AND d.type <> 'test')
    THEN now() END
WHERE w.id = $1 AND w.leased_by = $2

-- name: fail_webhook
-- Gives a leased one back that did not take what it got. $5: seconds until the next try; null: there is none, it is disabled. With
-- $4 it had taken something since it was leased: so the failure is its first.
UPDATE webhooks w
SET leased_until = '-infinity', leased_by = NULL, last_error = $3,
    failures = CASE WHEN $4 THEN 1 ELSE w.failures + 1 END,
    failing_since = CASE WHEN $4 THEN now() ELSE coalesce(w.failing_since, now()) END,
    state = CASE WHEN $5::float8 IS NULL THEN 'disabled' ELSE w.state END,
    disabled_at = CASE WHEN $5 IS NULL THEN now() END,
    due_at = now() + make_interval(secs => $5)
WHERE w.id = $1 AND w.leased_by = $2 AND w.state = 'active'

-- name: take_tests
-- Each is tried once (webhook_deliveries_tests, then primary keys).
UPDATE webhook_deliveries d SET attempts = 1, attempted_at = now()
FROM webhooks w
WHERE w.id = d.webhook_id AND d.id IN (
  SELECT t.id FROM webhook_deliveries t WHERE t.type = 'test' AND t.attempts = 0 ORDER BY t.id LIMIT $1 FOR UPDATE SKIP LOCKED)
RETURNING d.id AS delivery_id, d.body, w.id, w.user_id, w.url, w.secret,
          CASE WHEN w.old_secret_ends_at > now() THEN w.old_secret END AS old_secret, w.wakes, w.failures, 0::float8 AS failing_for

-- name: write_test
-- Primary key. The body of a test is not kept.
UPDATE webhook_deliveries
SET code = $3, error = $4, answer = $5, milliseconds = $6, body = NULL, delivered_at = CASE WHEN $2 THEN now() END
WHERE id = $1 AND type = 'test'

-- name: forget_deliveries
-- A page of the log after a week, and of what nobody took (webhook_deliveries_by_age).
DELETE FROM webhook_deliveries WHERE id IN (
  SELECT d.id FROM webhook_deliveries d WHERE d.created_at < now() - interval '7 days' LIMIT $1
)
RETURNING id

-- name: encrypted_webhooks
-- A page of them, by the primary key.
SELECT id, secret, old_secret FROM webhooks WHERE id > $1 ORDER BY id LIMIT $2

-- name: encrypt_webhook_again
-- Unless somebody changed it meanwhile.
UPDATE webhooks SET secret = $3, old_secret = $4 WHERE id = $1 AND secret = $2 RETURNING id
