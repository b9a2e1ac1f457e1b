-- name: create_import
-- Nothing comes back when the idempotency key was used before.
INSERT INTO lead_imports (user_id, idempotency_key, on_conflict, tags) VALUES ($1, $2, $3, $4)
ON CONFLICT (user_id, idempotency_key) DO NOTHING
RETURNING id, origin_seq

-- name: import_of_key
SELECT id FROM lead_imports WHERE user_id = $1 AND idempotency_key = $2

-- name: add_chunks
-- The API's batch rows, after the broker has the chunks. The worker may have been quicker: then its rows stay.
WITH moved AS (UPDATE lead_imports SET progress_at = now() WHERE id = $1)
INSERT INTO lead_import_batches (import_id, number, first_row, rows, content_hash)
SELECT $1, * FROM unnest($2::integer[], $3::bigint[], $4::integer[], $5::bytea[])
ON CONFLICT DO NOTHING

-- name: receive_import
-- The upload's end. A cancelled one stays cancelled.
UPDATE lead_imports SET state = 'received', chunks = $2, rows = $3, received_at = now(), progress_at = now()
WHERE id = $1 AND state = 'receiving' RETURNING id

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
WHERE id = $1 AND user_id = $2 AND state IN ('receiving', 'received') RETURNING id

-- name: claim_chunk
-- The worker's own batch row: inserted where the API's is missing, locked in any case. Twice the same chunk wait here
-- for one another, and the second finds it done.
INSERT INTO lead_import_batches AS b (import_id, number, first_row, rows, content_hash) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (import_id, number) DO UPDATE SET number = b.number
RETURNING state, stored, duplicate, rejected, announced_at

-- name: import_of_chunk
-- Primary key. What a chunk's import is now, and the smallest origin_seq that still counts (lead_imports_unfinished).
SELECT i.state, i.origin_seq, i.tags,
       least(i.origin_seq, (SELECT min(u.origin_seq) FROM lead_imports u WHERE u.state IN ('receiving', 'received')))
         AS oldest_seq
FROM lead_imports i WHERE i.id = $1 AND i.user_id = $2

-- name: finish_chunk
UPDATE lead_import_batches
SET state = $3, stored = $4, duplicate = $5, rejected = $6, done_at = now()
WHERE import_id = $1 AND number = $2

-- name: mark_chunk_announced
UPDATE lead_import_batches SET announced_at = now() WHERE import_id = $1 AND number = $2

-- name: unannounced_chunks
-- Partial index on done_at. Younger ones are still in the hands of the worker that stored them.
SELECT b.import_id, b.number, i.user_id, b.rows, b.state, b.stored, b.duplicate, b.rejected
FROM lead_import_batches b JOIN lead_imports i ON i.id = b.import_id
WHERE b.done_at < now() - interval '10 seconds' AND b.announced_at IS NULL
ORDER BY b.done_at LIMIT $1

-- name: finish_import
-- Done when the upload is complete and every one of its chunks has an end.
UPDATE lead_imports i SET state = 'done', ended_at = now()
WHERE i.id = $1 AND i.state = 'received' AND i.chunks = (
  SELECT count(*) FROM lead_import_batches b WHERE b.import_id = i.id AND b.state <> 'published'
)
RETURNING id, user_id

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
