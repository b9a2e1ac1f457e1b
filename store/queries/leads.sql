-- name: upsert_leads
-- A chunk's leads at once, sorted by key so that two imports of the same addresses lock in the same order. A row is
-- replaced by one that is later in (seq, row). `counted_for` remembers which unfinished imports have counted the address,
-- so `stored` is right in any order of chunks, also when another import wrote in between. $9 is the smallest origin_seq
-- that can still count. Where nothing changes the row is not touched, and not counted.
WITH upserted AS (
  INSERT INTO leads AS l (user_id, email_key, email, name, attributes, tags, origin_seq, origin_row, counted_for)
  SELECT $1, u.email_key, u.email, u.name, u.attributes::jsonb, $2, $8, u.origin_row, ARRAY[$8::bigint]
  FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[])
       AS u (email_key, email, name, attributes, origin_row)
  ON CONFLICT (user_id, email_key) DO UPDATE SET
    email = CASE WHEN (excluded.origin_seq, excluded.origin_row) > (l.origin_seq, l.origin_row)
                 THEN excluded.email ELSE l.email END,
    name = CASE WHEN (excluded.origin_seq, excluded.origin_row) > (l.origin_seq, l.origin_row)
                THEN excluded.name ELSE l.name END,
    attributes = CASE WHEN (excluded.origin_seq, excluded.origin_row) > (l.origin_seq, l.origin_row)
                      THEN excluded.attributes ELSE l.attributes END,
    tags = CASE WHEN (excluded.origin_seq, excluded.origin_row) > (l.origin_seq, l.origin_row)
                THEN excluded.tags ELSE l.tags END,
    origin_seq = greatest(l.origin_seq, excluded.origin_seq),
    origin_row = CASE WHEN (excluded.origin_seq, excluded.origin_row) > (l.origin_seq, l.origin_row)
                      THEN excluded.origin_row ELSE l.origin_row END,
    counted_for = CASE WHEN $8 = ANY (l.counted_for) THEN l.counted_for
                       WHEN $9 > ALL (l.counted_for) THEN excluded.counted_for
                       ELSE l.counted_for || $8::bigint END,
    updated_at = now()
  WHERE (excluded.origin_seq, excluded.origin_row) > (l.origin_seq, l.origin_row)
     OR NOT $8 = ANY (l.counted_for)
  RETURNING coalesce($8 = ANY (old.counted_for), false) AS counted
)
SELECT count(*) FILTER (WHERE NOT counted)::integer AS stored FROM upserted

-- name: add_rejects
-- The worker's, in the chunk's transaction.
INSERT INTO lead_rejects (import_id, row, line, field, code, reason, content)
SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[])

-- name: count_leads
-- A count over the user's part of the primary key.
SELECT count(*) FROM leads WHERE user_id = $1
