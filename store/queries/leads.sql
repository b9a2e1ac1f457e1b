-- name: upsert_leads
-- A chunk's leads at once, sorted by key so that two imports of the same addresses lock in the same order. A row is
-- replaced by one that is later in (seq, row). `counted_for` remembers which unfinished imports have counted the address,
-- so `stored` is right in any order of chunks, also when another import wrote in between. $9 is the smallest origin_seq
-- that can still count. Texts come joined by U+001F, which none of them has, since building arrays of them costs the worker
-- 2.7 us a lead more; of one empty name no array comes of it, hence the coalesce. Where nothing changes the row is not touched, and not counted. Leads that merges or skips have
-- written are only counted here, and named: `rebase_leads` does the rest of them, so that all others pay nothing for it.
WITH upserted AS (
  INSERT INTO leads AS l (user_id, email_key, email, name, attributes, tags, origin_seq, origin_row, counted_for)
  SELECT $1, u.email_key, u.email, coalesce(u.name, ''), u.attributes::jsonb, $2, $8, u.origin_row, ARRAY[$8::bigint]
  FROM unnest(string_to_array($3, E'\x1f'), string_to_array($4, E'\x1f'), string_to_array($5, E'\x1f'),
              string_to_array($6, E'\x1f'), $7::bigint[])
       AS u (email_key, email, name, attributes, origin_row)
  ON CONFLICT (user_id, email_key) DO UPDATE SET
    email = CASE WHEN l.field_origins IS NULL AND (excluded.origin_seq, excluded.origin_row) > (l.origin_seq, l.origin_row)
                 THEN excluded.email ELSE l.email END,
    name = CASE WHEN l.field_origins IS NULL AND (excluded.origin_seq, excluded.origin_row) > (l.origin_seq, l.origin_row)
                THEN excluded.name ELSE l.name END,
    attributes = CASE WHEN l.field_origins IS NULL AND (excluded.origin_seq, excluded.origin_row) > (l.origin_seq, l.origin_row)
                      THEN excluded.attributes ELSE l.attributes END,
    tags = CASE WHEN l.field_origins IS NULL AND (excluded.origin_seq, excluded.origin_row) > (l.origin_seq, l.origin_row)
                THEN excluded.tags ELSE l.tags END,
    origin_seq = CASE WHEN l.field_origins IS NULL THEN greatest(l.origin_seq, excluded.origin_seq) ELSE l.origin_seq END,
    origin_row = CASE WHEN l.field_origins IS NULL AND (excluded.origin_seq, excluded.origin_row) > (l.origin_seq, l.origin_row)
                      THEN excluded.origin_row ELSE l.origin_row END,
    counted_for = CASE WHEN $8 = ANY (l.counted_for) THEN l.counted_for
                       WHEN $9 > ALL (l.counted_for) THEN excluded.counted_for
                       ELSE l.counted_for || $8::bigint END,
    updated_at = now()
  WHERE (excluded.origin_seq, excluded.origin_row) > (l.origin_seq, l.origin_row)
     OR NOT $8 = ANY (l.counted_for) OR l.field_origins IS NOT NULL
  RETURNING CASE WHEN old.field_origins IS NOT NULL THEN email_key END AS combined, coalesce($8 = ANY (old.counted_for), false) AS counted
)
SELECT count(*) FILTER (WHERE NOT counted)::integer AS stored, array_agg(combined) FILTER (WHERE combined IS NOT NULL) AS combined
FROM upserted

-- name: rebase_leads
-- In the transaction of upsert_leads, for the leads it named: $2 is of the chunk, as there; $9 the names. Primary key.
UPDATE leads l SET
  (email, name, attributes, tags, origin_seq, origin_row, field_origins) =
  (SELECT c.email, c.name, c.attributes, c.tags, c.origin_seq, c.origin_row, c.field_origins
   FROM combine_lead(l, jsonb_populate_record(l, jsonb_build_object(
     'email', u.email, 'name', coalesce(u.name, ''), 'attributes', u.attributes::jsonb, 'tags', $2::text[],
     'origin_seq', $8::bigint, 'origin_row', u.origin_row)), 'replace') c)
FROM unnest(string_to_array($3, E'\x1f'), string_to_array($4, E'\x1f'), string_to_array($5, E'\x1f'),
              string_to_array($6, E'\x1f'), $7::bigint[])
     AS u (email_key, email, name, attributes, origin_row)
WHERE l.user_id = $1 AND l.email_key = u.email_key AND u.email_key = ANY ($9::text[])

-- name: skip_leads
-- As upsert_leads, for an import that leaves alone what was stored before it. What other leads cost here is one more
-- number in `counted_for`, while their own part stays as it is.
WITH upserted AS (
  INSERT INTO leads AS l
    (user_id, email_key, email, name, attributes, tags, origin_seq, origin_row, counted_for, field_origins)
  SELECT $1, u.email_key, u.email, coalesce(u.name, ''), u.attributes::jsonb, $2, $8, u.origin_row, ARRAY[$8::bigint],
         jsonb_build_object('kind', 'skip', 'base', jsonb_build_array($8::bigint, u.origin_row))
  FROM unnest(string_to_array($3, E'\x1f'), string_to_array($4, E'\x1f'), string_to_array($5, E'\x1f'),
              string_to_array($6, E'\x1f'), $7::bigint[])
       AS u (email_key, email, name, attributes, origin_row)
  ON CONFLICT (user_id, email_key) DO UPDATE SET
    (email, name, attributes, tags, origin_seq, origin_row, field_origins, updated_at) =
    (SELECT c.email, c.name, c.attributes, c.tags, c.origin_seq, c.origin_row, c.field_origins, c.updated_at
     FROM combine_lead(l, ROW(excluded.*)::leads, 'skip') c),
    counted_for = CASE WHEN $8 = ANY (l.counted_for) THEN l.counted_for
                       WHEN $9 > ALL (l.counted_for) THEN excluded.counted_for
                       ELSE l.counted_for || $8::bigint END
  WHERE NOT $8 = ANY (l.counted_for) OR l.field_origins IS NOT NULL
  RETURNING coalesce($8 = ANY (old.counted_for), false) AS counted
)
SELECT count(*) FILTER (WHERE NOT counted)::integer AS stored FROM upserted

-- name: merge_leads
-- As upsert_leads, field by field: the later pair stays for the name (an empty one is none), the email as written and each
-- attribute; tags are united.
WITH upserted AS (
  INSERT INTO leads AS l
    (user_id, email_key, email, name, attributes, tags, origin_seq, origin_row, counted_for, field_origins)
  SELECT $1, u.email_key, u.email, coalesce(u.name, ''), u.attributes::jsonb, $2, $8, u.origin_row, ARRAY[$8::bigint],
         jsonb_build_object('kind', 'merge', 'base', jsonb_build_array($8::bigint, u.origin_row), 'first', $8::bigint)
  FROM unnest(string_to_array($3, E'\x1f'), string_to_array($4, E'\x1f'), string_to_array($5, E'\x1f'),
              string_to_array($6, E'\x1f'), $7::bigint[])
       AS u (email_key, email, name, attributes, origin_row)
  ON CONFLICT (user_id, email_key) DO UPDATE SET
    (email, name, attributes, tags, origin_seq, origin_row, field_origins, updated_at) =
    (SELECT c.email, c.name, c.attributes, c.tags, c.origin_seq, c.origin_row, c.field_origins, c.updated_at
     FROM combine_lead(l, ROW(excluded.*)::leads, 'merge') c),
    counted_for = CASE WHEN $8 = ANY (l.counted_for) THEN l.counted_for
                       WHEN $9 > ALL (l.counted_for) THEN excluded.counted_for
                       ELSE l.counted_for || $8::bigint END
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

-- name: read_lead
-- Primary key.
SELECT email_key, email, name, attributes, tags, created_at, updated_at FROM leads WHERE user_id = $1 AND email_key = $2

-- name: lock_lead
-- Primary key. Until the transaction ends the lead is as it is read here: the edit that follows is made of it.
SELECT email_key, email, name, attributes, tags, created_at, updated_at FROM leads WHERE user_id = $1 AND email_key = $2
FOR UPDATE

-- name: write_lead
-- Behind lock_lead, which is why the origin is drawn here: of two edits the later one has the greater. The whole lead is of
-- the edit from now on, also what it left as it was: rows of imports that began before it change nothing any more.
UPDATE leads
SET name = $3, attributes = $4::jsonb, tags = $5, origin_seq = nextval('lead_origin_seq'), origin_row = 0,
    field_origins = NULL, updated_at = now()
WHERE user_id = $1 AND email_key = $2
RETURNING email_key, email, name, attributes, tags, created_at, updated_at

-- name: put_lead
-- Primary key. A second origin is drawn for a lead that is there: the first was drawn before its row was locked.
INSERT INTO leads AS l (user_id, email_key, email, name, attributes, tags, origin_seq, origin_row, counted_for)
VALUES ($1, $2, $3, $4, $5::jsonb, $6, nextval('lead_origin_seq'), 0, '{}')
ON CONFLICT (user_id, email_key) DO UPDATE SET
  email = excluded.email, name = excluded.name, attributes = excluded.attributes, tags = excluded.tags,
  origin_seq = nextval('lead_origin_seq'), origin_row = 0, field_origins = NULL, updated_at = now()
RETURNING l.email_key, l.email, l.name, l.attributes, l.tags, l.created_at, l.updated_at, old.email_key IS NULL AS created

-- name: tag_leads
-- Primary key, locked in its order as all who write leads do. Leads that would have more than $5 tags stay as they are.
WITH found AS (
  SELECT l.email_key, l.tags,
         ARRAY(SELECT unnest(l.tags) EXCEPT SELECT unnest($4::text[]) UNION SELECT unnest($3::text[]) ORDER BY 1) AS wanted
  FROM leads l WHERE l.user_id = $1 AND l.email_key = ANY ($2::text[]) ORDER BY l.email_key FOR UPDATE
), changed AS (
  UPDATE leads l
  SET tags = f.wanted, origin_seq = nextval('lead_origin_seq'), origin_row = 0, field_origins = NULL, updated_at = now()
  FROM found f
  WHERE l.user_id = $1 AND l.email_key = f.email_key AND cardinality(f.wanted) <= $5
    AND NOT (f.wanted @> f.tags AND f.wanted <@ f.tags)
  RETURNING l.email_key
)
SELECT count(*)::integer AS leads, (SELECT count(*) FROM changed)::integer AS changed,
       count(*) FILTER (WHERE cardinality(wanted) > $5)::integer AS full_up
FROM found

-- name: search_leads
-- Looks at up to $5 leads behind $2 in the order of the primary key, and stops at the $6th that fits. The last lead of
-- those $5 comes in any case, also where it does not fit: from there the next slice goes on. No index serves the other
-- conditions. Measured, imports of 200,000 rows and of the same again: GIN on the attributes doubles the WAL (188 to 382 MB)
-- and takes 35 to 50 % of the speed, GIN on the tags a third more WAL and 10 to 30 %; 100,000 leads are looked at in 0.2 s.
SELECT email_key, email, name, attributes, tags, created_at, updated_at, fits, number = $5 AS last
FROM (
  SELECT l.*, row_number() OVER (ORDER BY l.email_key) AS number,
         ($7::text IS NULL OR strpos(lower(l.name COLLATE pg_c_utf8), $7) > 0)
           AND l.tags @> $8::text[] AND l.attributes ?& $9::text[]
           AND NOT EXISTS (SELECT FROM unnest($10::text[], $11::text[]) AS wanted (key, value)
                           WHERE l.attributes->>wanted.key IS DISTINCT FROM wanted.value)
           AND ($12::timestamptz IS NULL OR l.updated_at >= $12)
           AND ($13::bigint IS NULL OR l.origin_seq = $13) AS fits
  FROM leads l
  WHERE l.user_id = $1 AND l.email_key > $2 AND l.email_key >= $3 AND l.email_key < $4
  ORDER BY l.email_key LIMIT $5
) AS slice
WHERE fits OR number = $5 ORDER BY email_key LIMIT $6
