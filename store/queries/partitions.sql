-- name: list_partitions
-- The months of mails: tables named like one, attached or not. `rows` is what the server last counted or estimated; nothing is
-- read for it. `pending`: a detaching that was interrupted.
SELECT c.relname AS name, i.inhparent IS NOT NULL AND NOT i.inhdetachpending AS attached,
       coalesce(i.inhdetachpending, false) AS pending,
       greatest(c.reltuples::bigint, pg_stat_get_live_tuples(c.oid), 0) AS rows, pg_total_relation_size(c.oid) AS bytes
FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = 'email_sends'::regclass
WHERE c.relkind = 'r' AND c.relnamespace = (SELECT p.relnamespace FROM pg_class p WHERE p.oid = 'email_sends'::regclass)
  AND c.relname ~ '^email_sends_\d{4}_\d{2}$'
ORDER BY c.relname

-- name: unended_sends
-- Of a month (primary key): sends that may still write a mail of it. An incomplete one may go on, unless it is cancelled.
SELECT id, user_id, campaign_id, lane, state FROM campaign_sends
WHERE id >= $1 AND id < $2 AND (state NOT IN ('cancelled', 'done') OR ended_at IS NULL) ORDER BY id LIMIT $3
