-- name: add_dead_letter
-- Unique by the coordinates of the record that failed: mirrored twice it is there once.
INSERT INTO dead_letters (topic, partition, "offset", key, value, headers, stage, kind, code, error)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING
