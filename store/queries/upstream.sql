-- name: lock_upstream_offset
-- The partition's row, made or locked until the transaction ends: whoever else has a batch of this partition, from before a
-- rebalance, waits here. The origin is drawn behind the lock, so that origins rise as the offsets do.
INSERT INTO upstream_offsets AS o (topic, partition) VALUES ($1, $2)
ON CONFLICT (topic, partition) DO UPDATE SET topic = o.topic
RETURNING next_offset, newest, nextval('lead_origin_seq') AS origin_seq

-- name: move_upstream_offset
-- In the transaction that stores the batch.
UPDATE upstream_offsets SET next_offset = $3, newest = $4, moved_at = now() WHERE topic = $1 AND partition = $2

-- name: replace_leads
-- Leads of any users, sorted by the primary key so that writers lock in one order, each a whole lead with a new origin. What
-- merges and skips have left is over with that. An import that was created since the origin was drawn is later, and stays.
INSERT INTO leads AS l (user_id, email_key, email, name, attributes, tags, origin_seq, origin_row, counted_for)
SELECT u.user_id, u.email_key, u.email, u.name, u.attributes::jsonb,
       CASE WHEN u.tags = '[]' THEN '{}' ELSE ARRAY(SELECT jsonb_array_elements_text(u.tags::jsonb)) END,
       $8, u.origin_row, '{}'
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[])
     AS u (user_id, email_key, email, name, attributes, tags, origin_row)
ON CONFLICT (user_id, email_key) DO UPDATE SET
  email = excluded.email, name = excluded.name, attributes = excluded.attributes, tags = excluded.tags,
  origin_seq = excluded.origin_seq, origin_row = excluded.origin_row, field_origins = NULL,
  updated_at = now()
WHERE excluded.origin_seq > l.origin_seq
