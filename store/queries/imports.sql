-- name: create_import
-- Nothing comes back when the idempotency key was used before.
INSERT INTO lead_imports (user_id, idempotency_key, on_conflict, tags) VALUES ($1, $2, $3, $4)
ON CONFLICT (user_id, idempotency_key) DO NOTHING
RETURNING id, origin_seq

-- name: import_of_key
-- Unique index on (user_id, idempotency_key).
SELECT id, user_id, state, origin_seq, on_conflict, tags, chunks, rows, created_at, received_at, ended_at
FROM lead_imports WHERE user_id = $1 AND idempotency_key = $2

-- name: resume_import
-- The same upload again, by the unique index on (user_id, idempotency_key): what has lost its API, or only seems so, is
-- received on. For a week; from then on `import_of_chunk` does not count with it any more. Nothing comes back when it is
-- another upload (options), or none that is under way.
UPDATE lead_imports SET state = 'receiving', ended_at = NULL, progress_at = now()
WHERE user_id = $1 AND idempotency_key = $2 AND on_conflict = $3 AND tags = $4
  AND (state = 'receiving' OR state = 'incomplete' AND ended_at > now() - interval '7 days')
RETURNING id, user_id, state, origin_seq, on_conflict, tags, chunks, rows, created_at, received_at, ended_at

-- name: chunk_hashes
-- Primary key: those of the chunks from number $3 up to $4 that are there.
SELECT b.number, b.content_hash FROM lead_imports i JOIN lead_import_batches b ON b.import_id = i.id
WHERE i.id = $1 AND i.user_id = $2 AND b.number >= $3 AND b.number < $4

-- name: add_chunks
-- The API's batch rows, after the broker has the chunks, while their import is received. The worker may have been quicker,
-- or another upload with the same key: then their rows stay, and `others` counts those that hold something else.
WITH moved AS (UPDATE lead_imports SET progress_at = now() WHERE id = $1 AND state = 'receiving' RETURNING id),
added AS (
  INSERT INTO lead_import_batches AS b (import_id, number, first_row, rows, content_hash)
  SELECT moved.id, u.* FROM moved, unnest($2::integer[], $3::bigint[], $4::integer[], $5::bytea[]) AS u
  ON CONFLICT (import_id, number) DO UPDATE SET number = b.number WHERE b.content_hash <> excluded.content_hash
  RETURNING old.number AS other
)
SELECT count(other)::integer AS others FROM added

-- name: open_chunks
-- How many of a user's chunks are published and not stored, counted up to $2, and the sum of the numbers they have come to
-- by import: it moves while workers do. lead_imports_counting, then lead_import_batches_open, a few rows of each.
WITH under_way AS MATERIALIZED (
  SELECT i.id FROM lead_imports i WHERE i.user_id = $1 AND i.state IN ('receiving', 'received')
)
SELECT (SELECT count(*) FROM (
          SELECT FROM under_way u JOIN lead_import_batches b ON b.import_id = u.id AND b.state = 'published' LIMIT $2
        ) AS counted)::integer AS chunks,
       (SELECT coalesce(sum(first.number), 0) FROM under_way u, LATERAL (
          SELECT b.number FROM lead_import_batches b WHERE b.import_id = u.id AND b.state = 'published'
          ORDER BY b.number LIMIT 1
        ) AS first)::bigint AS low

-- name: receive_import
-- The upload's end. A cancelled one stays cancelled, and one that has more chunks than this is of a longer upload.
UPDATE lead_imports SET state = 'received', chunks = $2, rows = $3, received_at = now(), progress_at = now()
WHERE id = $1 AND state = 'receiving'
  AND NOT EXISTS (SELECT FROM lead_import_batches b WHERE b.import_id = $1 AND b.number >= $2)
RETURNING id

-- name: read_import
SELECT id, user_id, state, origin_seq, on_conflict, tags, chunks, rows, created_at, received_at, ended_at
FROM lead_imports WHERE id = $1 AND user_id = $2

-- name: list_imports
-- Newest first by the index on (user_id, id); $2 is the last id of the page before, or null.
SELECT id, user_id, state, origin_seq, on_conflict, tags, chunks, rows, created_at, received_at, ended_at
FROM lead_imports WHERE user_id = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3

-- name: import_counts
SELECT count(*)::integer AS chunks,
       count(*) FILTER (WHERE b.state <> 'published')::integer AS chunks_done,
       coalesce(sum(b.stored), 0)::bigint AS stored,
       coalesce(sum(b.duplicate), 0)::bigint AS duplicate,
       coalesce(sum(b.rejected), 0)::bigint AS rejected,
       coalesce(sum(b.rows) FILTER (WHERE b.state = 'dead'), 0)::bigint AS dead,
       max(b.done_at) AS last_at
FROM lead_imports i JOIN lead_import_batches b ON b.import_id = i.id WHERE i.id = $1 AND i.user_id = $2

-- name: reject_reasons
SELECT r.field, r.code, count(*) AS rows, min(r.row) AS first_row, min(r.reason) AS reason
FROM lead_imports i JOIN lead_rejects r ON r.import_id = i.id WHERE i.id = $1 AND i.user_id = $2
GROUP BY r.field, r.code ORDER BY rows DESC, r.code

-- name: list_rejects
-- By the primary key; $3 is the last row of the page before.
SELECT r.row, r.line, r.field, r.code, r.reason, r.content
FROM lead_imports i JOIN lead_rejects r ON r.import_id = i.id WHERE i.id = $1 AND i.user_id = $2 AND r.row > $3
ORDER BY r.row LIMIT $4

-- name: cancel_import
UPDATE lead_imports SET state = 'cancelled', ended_at = now()
WHERE id = $1 AND user_id = $2 AND state IN ('receiving', 'received', 'incomplete') RETURNING id

-- name: import_batches
-- Primary key: an import's batch rows by state.
SELECT b.state, count(*)::integer AS batches
FROM lead_imports i JOIN lead_import_batches b ON b.import_id = i.id WHERE i.id = $1 AND i.user_id = $2 GROUP BY b.state

-- name: claim_chunk
-- The worker's own batch row: inserted where the API's is missing, locked in any case. Twice the same chunk wait here
-- for one another, and the second finds it done.
INSERT INTO lead_import_batches AS b (import_id, number, first_row, rows, content_hash) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (import_id, number) DO UPDATE SET number = b.number
RETURNING content_hash, state, stored, duplicate, rejected, announced_at

-- name: import_of_chunk
-- Primary key. What a chunk's import is now, and the user's smallest origin_seq that still counts (lead_imports_counting):
-- of imports under way, and of those that broke off and may be resumed.
SELECT i.state, i.origin_seq, i.tags, i.chunks,
       least(i.origin_seq, (SELECT min(u.origin_seq) FROM lead_imports u
                            WHERE u.user_id = $2 AND u.state IN ('receiving', 'received', 'incomplete')
                              AND (u.state <> 'incomplete' OR u.ended_at > now() - interval '7 days')))
         AS oldest_seq
FROM lead_imports i WHERE i.id = $1 AND i.user_id = $2

-- name: finish_chunk
UPDATE lead_import_batches
SET state = $3, stored = $4, duplicate = $5, rejected = $6, done_at = now()
WHERE import_id = $1 AND number = $2

-- name: mark_chunks_announced
-- Locked in the order of their numbers, as add_chunks does: an upload that is resumed may write the same rows just then.
WITH told AS (
  SELECT b.import_id, b.number FROM unnest($1::uuid[], $2::integer[]) AS t (import_id, number)
  JOIN lead_import_batches b ON b.import_id = t.import_id AND b.number = t.number
  ORDER BY b.import_id, b.number FOR UPDATE OF b
)
UPDATE lead_import_batches b SET announced_at = now() FROM told WHERE b.import_id = told.import_id AND b.number = told.number

-- name: rejects_of_chunks
-- Primary keys: the rejected rows of each chunk are a range of its import's.
SELECT b.import_id, b.number, r.row, r.line, r.field, r.code
FROM unnest($1::uuid[], $2::integer[]) AS g (import_id, number)
JOIN lead_import_batches b ON b.import_id = g.import_id AND b.number = g.number
CROSS JOIN LATERAL (
  SELECT * FROM lead_rejects e WHERE e.import_id = b.import_id AND e.row >= b.first_row AND e.row < b.first_row + b.rows
) AS r
ORDER BY b.import_id, r.row

-- name: unannounced_chunks
-- Partial index on done_at. Younger ones are still in the hands of the worker that stored them.
SELECT b.import_id, b.number, i.user_id, b.first_row, b.rows, b.state, b.stored, b.duplicate, b.rejected
FROM lead_import_batches b JOIN lead_imports i ON i.id = b.import_id
WHERE b.done_at < now() - interval '10 seconds' AND b.announced_at IS NULL
ORDER BY b.done_at LIMIT $1

-- name: finish_import
-- Done when the upload is complete and every one of its chunks has an end.
UPDATE lead_imports i SET state = 'done', ended_at = now()
WHERE i.id = $1 AND i.state = 'received' AND i.chunks = (
  SELECT count(*) FROM lead_import_batches b WHERE b.import_id = i.id AND b.state <> 'published' AND b.number < i.chunks
)
RETURNING id, user_id

-- name: lock_ended_import
-- Primary key. Maintenance writes its end into its progress; meanwhile nobody can resume it.
SELECT state, rows FROM lead_imports WHERE id = $1 AND user_id = $2 AND ended_at IS NOT NULL FOR SHARE

-- name: unfinished_imports
-- Partial index. Received ones, which may be done by now.
SELECT id, user_id FROM lead_imports WHERE state = 'received'
ORDER BY origin_seq LIMIT $1

-- name: mark_stalled_imports
-- Partial index. An upload that has not moved for a minute has lost its API.
UPDATE lead_imports SET state = 'incomplete', ended_at = now()
WHERE state = 'receiving' AND progress_at < now() - interval '60 seconds'
RETURNING id, user_id

-- name: mark_dead_chunks
-- A chunk that nobody could decode is in dead_letters under its key: import id and chunk number.
UPDATE lead_import_batches b SET state = 'dead', done_at = now()
FROM lead_imports i, dead_letters d
WHERE i.state IN ('receiving', 'received') AND b.import_id = i.id AND b.state = 'published'
  AND d.topic = $1 AND d.key = convert_to(b.import_id || ':' || b.number, 'UTF8')
RETURNING b.import_id, b.number

-- name: received_rows
-- Which rows an upload that broke off has: one line a gapless range of chunks.
SELECT min(first_row) AS first_row, max(first_row + rows - 1) AS last_row
FROM (SELECT b.first_row, b.rows, b.number - row_number() OVER (ORDER BY b.number) AS island
      FROM lead_imports i JOIN lead_import_batches b ON b.import_id = i.id
      WHERE i.id = $1 AND i.user_id = $2) AS numbered
GROUP BY island ORDER BY 1

-- name: published_chunks
-- Of imports that are not over, those that nobody has stored (lead_imports_unfinished, lead_import_batches_open).
SELECT b.import_id, b.number FROM lead_imports i JOIN lead_import_batches b ON b.import_id = i.id
WHERE i.state IN ('receiving', 'received') AND b.state = 'published'

-- name: lose_chunks
-- Kafka has lost them. Their rows go, or the same upload would pass them over; what has been stored meanwhile stays.
WITH lost AS (
  DELETE FROM lead_import_batches b USING unnest($1::uuid[], $2::integer[]) AS gone (import_id, number)
  WHERE b.import_id = gone.import_id AND b.number = gone.number AND b.state = 'published'
  RETURNING b.import_id, b.first_row, b.rows
), broken AS (
  UPDATE lead_imports i SET state = 'incomplete', ended_at = now()
  WHERE i.id IN (SELECT import_id FROM lost) AND i.state IN ('receiving', 'received')
)
SELECT lost.import_id, i.user_id, lost.first_row, lost.rows FROM lost JOIN lead_imports i ON i.id = lost.import_id
ORDER BY lost.import_id, lost.first_row
