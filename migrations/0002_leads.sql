-- Leads, and the imports that bring them.

-- One sequence for imports, edits and upstream: of two writes to a lead the one with the greater (seq, row) stays.
CREATE SEQUENCE lead_origin_seq AS bigint;

CREATE TABLE leads (
  user_id      text NOT NULL,
  email_key    text COLLATE "C" NOT NULL,  -- the address as identity: core/addresses.py
  email        text NOT NULL,     -- as written, for sending
  name         text NOT NULL DEFAULT '',
  attributes   jsonb NOT NULL DEFAULT '{}',
  tags         text[] NOT NULL DEFAULT '{}',
  origin_seq   bigint NOT NULL,
  origin_row   bigint NOT NULL,
  counted_for  bigint[] NOT NULL, -- origin_seq of the unfinished imports that have counted this address as stored
  created_at   timestamptz NOT NULL DEFAULT now(),
  updated_at   timestamptz NOT NULL DEFAULT now(),
  -- Null: the whole lead is of (origin_seq, origin_row). Else what merges and skips left: see combine_lead. What it says
  -- holds for the pair that it names, so that who writes a whole lead with a later pair need not touch it.
  field_origins jsonb,
  PRIMARY KEY (user_id, email_key)  -- leads.sql: upsert_leads; sends.sql: materialise_page
) WITH (fillfactor = 85);

-- A lead with one more write: the same result in any order of writes, namely that of the order of their pairs (seq, row).
-- A replace sets the whole lead; a merge sets each field it has; a skip sets the lead that nothing set before it.
--
-- field_origins = {"base": [seq, row], "kind": "merge" | "skip", "first": seq, "email": [..], "name": [..],
-- "attributes": {key: [..]}, "tags": {tag: [..]}}. A field without a pair of its own is of the base, which is
-- (origin_seq, origin_row): a replace, unless `kind` says otherwise and `base` is that pair. `first` is the earliest seq of
-- a merge: a skip later than that has nothing to say. Pairs are compared as jsonb, number by number.
CREATE FUNCTION combine_lead(l leads, n leads, mode text) RETURNS leads LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  o jsonb := coalesce(l.field_origins, '{}');
  base jsonb := jsonb_build_array(l.origin_seq, l.origin_row);
  pair jsonb := jsonb_build_array(n.origin_seq, n.origin_row);
  kind text := CASE WHEN o->'base' = base THEN o->>'kind' ELSE 'replace' END;
  first bigint := CASE WHEN o->'base' = base THEN (o->>'first')::bigint END;
  email_at jsonb; name_at jsonb; attributes_at jsonb; tags_at jsonb; won jsonb;
BEGIN
  IF (mode = 'skip' AND NOT (CASE kind
        WHEN 'replace' THEN false
        WHEN 'merge' THEN n.origin_seq < first
        ELSE n.origin_seq < l.origin_seq OR (n.origin_seq = l.origin_seq AND pair > base) END))
     OR (mode <> 'skip' AND kind = 'replace' AND pair < base) THEN
    RETURN l;
  END IF;

  IF mode = 'merge' AND kind = 'merge' AND pair > base THEN
    -- The usual case, and three times as fast as the rest: all of the new wins and is the base, what it lacks keeps its pair.
    won := l.attributes - ARRAY(SELECT jsonb_object_keys(n.attributes));
    o := jsonb_strip_nulls(jsonb_build_object(
      'kind', kind, 'base', pair, 'first', first,
      'name', CASE WHEN n.name = '' AND l.name <> '' THEN coalesce(o->'name', base) END,
      'attributes', CASE WHEN won <> '{}' THEN (
        SELECT jsonb_object_agg(key, coalesce(o->'attributes'->key, base)) FROM jsonb_object_keys(won) key) END,
      'tags', CASE WHEN NOT l.tags <@ n.tags THEN (
        SELECT jsonb_object_agg(tag, coalesce(o->'tags'->tag, base)) FROM unnest(l.tags) tag WHERE tag <> ALL (n.tags)) END));
    IF NOT l.tags @> n.tags THEN
      l.tags := ARRAY(SELECT unnest(l.tags) UNION SELECT unnest(n.tags) ORDER BY 1);
    END IF;
    l.email := n.email;
    l.name := coalesce(nullif(n.name, ''), l.name);
    l.attributes := l.attributes || n.attributes;
    l.origin_seq := n.origin_seq;
    l.origin_row := n.origin_row;
    l.field_origins := o;
    l.updated_at := n.updated_at;
    RETURN l;
  END IF;

  IF mode = 'replace' AND pair > base AND coalesce(pair > o->'email', true) THEN
    -- As usual, too: later than all there is. Every merge sets the email, so that no field has a later pair.
    l.email := n.email;
    l.name := n.name;
    l.attributes := n.attributes;
    l.tags := n.tags;
    l.origin_seq := n.origin_seq;
    l.origin_row := n.origin_row;
    l.field_origins := NULL;
    l.updated_at := n.updated_at;
    RETURN l;
  END IF;

  -- Every field that has a pair of its own, and is later than the base.
  email_at := CASE WHEN kind = 'merge' THEN base WHEN o->'email' > base THEN o->'email' END;
  name_at := CASE WHEN kind = 'merge' THEN coalesce(o->'name', CASE WHEN l.name <> '' THEN base END)
                  WHEN o->'name' > base THEN o->'name' END;
  attributes_at := coalesce(o->'attributes', '{}');
  tags_at := coalesce(o->'tags', '{}');
  IF kind = 'merge' THEN
    attributes_at := (SELECT coalesce(jsonb_object_agg(key, base), '{}') FROM jsonb_object_keys(l.attributes) key) || attributes_at;
    tags_at := (SELECT coalesce(jsonb_object_agg(tag, base), '{}') FROM unnest(l.tags) tag) || tags_at;
  ELSIF o <> '{}' THEN
    attributes_at := (SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each(attributes_at) WHERE value > base);
    tags_at := (SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each(tags_at) WHERE value > base);
  END IF;

  IF mode = 'merge' THEN
    IF kind = 'skip' AND n.origin_seq < l.origin_seq THEN
      -- It was there before the skip, which so had nothing to say.
      kind := 'merge';
      IF name_at IS NULL THEN l.name := ''; END IF;
      l.attributes := (SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each(l.attributes) WHERE attributes_at ? key);
      l.tags := ARRAY(SELECT jsonb_object_keys(tags_at));
    END IF;
    IF kind <> 'replace' THEN
      first := least(first, n.origin_seq);
    END IF;
    IF email_at IS NULL OR pair > email_at THEN
      l.email := n.email;
      email_at := pair;
    END IF;
    IF n.name <> '' AND (name_at IS NULL OR pair > name_at) THEN
      l.name := n.name;
      name_at := pair;
    END IF;
    won := n.attributes;
    IF attributes_at <> '{}' THEN
      won := (SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each(n.attributes)
              WHERE NOT attributes_at ? key OR pair > attributes_at->key);
    END IF;
    IF won <> '{}' THEN
      l.attributes := l.attributes || won;
      attributes_at := attributes_at || (SELECT jsonb_object_agg(key, pair) FROM jsonb_object_keys(won) key);
    END IF;
    IF n.tags <> '{}' THEN
      tags_at := tags_at || (SELECT coalesce(jsonb_object_agg(tag, pair), '{}') FROM unnest(n.tags) tag
                             WHERE NOT tags_at ? tag OR pair > tags_at->tag);
      l.tags := ARRAY(SELECT unnest(l.tags) UNION SELECT unnest(n.tags) ORDER BY 1);
    END IF;
  ELSE
    -- A new base. What is later than it stays.
    kind := mode;
    l.origin_seq := n.origin_seq;
    l.origin_row := n.origin_row;
    IF email_at > pair THEN NULL; ELSE email_at := NULL; l.email := n.email; END IF;
    IF name_at > pair THEN NULL; ELSE name_at := NULL; l.name := n.name; END IF;
    attributes_at := (SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each(attributes_at) WHERE value > pair);
    l.attributes := n.attributes || (SELECT coalesce(jsonb_object_agg(key, l.attributes->key), '{}')
                                     FROM jsonb_object_keys(attributes_at) key);
    tags_at := (SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each(tags_at) WHERE value > pair);
    IF tags_at = '{}' THEN l.tags := n.tags;
    ELSE l.tags := ARRAY(SELECT unnest(n.tags) UNION SELECT jsonb_object_keys(tags_at) ORDER BY 1);
    END IF;
  END IF;
  l.updated_at := n.updated_at;

  o := '{}';
  IF kind = 'merge' THEN
    -- Every merge sets the email: its pair is the latest. Whatever has the same pair needs none of its own.
    l.origin_seq := (email_at->>0)::bigint;
    l.origin_row := (email_at->>1)::bigint;
    name_at := nullif(name_at, email_at);
    attributes_at := (SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each(attributes_at) WHERE value <> email_at);
    tags_at := (SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each(tags_at) WHERE value <> email_at);
    o := jsonb_build_object('kind', kind, 'base', email_at);
    email_at := NULL;
  ELSIF kind = 'skip' THEN
    o := jsonb_build_object('kind', kind, 'base', jsonb_build_array(l.origin_seq, l.origin_row));
  ELSE
    first := NULL;
  END IF;
  IF first IS NOT NULL THEN o := o || jsonb_build_object('first', first); END IF;
  IF email_at IS NOT NULL THEN o := o || jsonb_build_object('email', email_at); END IF;
  IF name_at IS NOT NULL THEN o := o || jsonb_build_object('name', name_at); END IF;
  IF attributes_at <> '{}' THEN o := o || jsonb_build_object('attributes', attributes_at); END IF;
  IF tags_at <> '{}' THEN o := o || jsonb_build_object('tags', tags_at); END IF;
  l.field_origins := nullif(o, '{}');
  RETURN l;
END
$$;

CREATE TABLE lead_imports (
  id               uuid PRIMARY KEY DEFAULT uuidv7(),
  user_id          text NOT NULL,
  idempotency_key  text,
  state            text NOT NULL DEFAULT 'receiving'
                   CHECK (state IN ('receiving', 'received', 'incomplete', 'done', 'cancelled')),
  origin_seq       bigint NOT NULL DEFAULT nextval('lead_origin_seq'),
  on_conflict      text NOT NULL DEFAULT 'replace' CHECK (on_conflict IN ('replace', 'skip', 'merge')),
  tags             text[] NOT NULL DEFAULT '{}',
  chunks           integer,        -- known once received
  rows             bigint,
  created_at       timestamptz NOT NULL DEFAULT now(),
  progress_at      timestamptz NOT NULL DEFAULT now(),  -- when the upload last moved
  received_at      timestamptz,
  ended_at         timestamptz
);
CREATE UNIQUE INDEX lead_imports_idempotency ON lead_imports (user_id, idempotency_key);
CREATE INDEX lead_imports_unfinished ON lead_imports (origin_seq) WHERE state IN ('receiving', 'received');  -- imports.sql: unfinished_imports, mark_stalled_imports
CREATE INDEX lead_imports_counting ON lead_imports (user_id, origin_seq) WHERE state IN ('receiving', 'received', 'incomplete');  -- imports.sql: import_of_chunk, open_chunks
CREATE INDEX lead_imports_by_user ON lead_imports (user_id, id);  -- imports.sql: list_imports

CREATE TABLE lead_import_batches (
  import_id     uuid NOT NULL REFERENCES lead_imports ON DELETE CASCADE,
  number        integer NOT NULL,
  first_row     bigint NOT NULL,
  rows          integer NOT NULL,
  content_hash  bytea NOT NULL,
  state         text NOT NULL DEFAULT 'published' CHECK (state IN ('published', 'done', 'dead', 'cancelled')),
  stored        integer NOT NULL DEFAULT 0,
  duplicate     integer NOT NULL DEFAULT 0,
  rejected      integer NOT NULL DEFAULT 0,
  published_at  timestamptz NOT NULL DEFAULT now(),
  done_at       timestamptz,
  announced_at  timestamptz,
  PRIMARY KEY (import_id, number)
);
CREATE INDEX lead_import_batches_unannounced ON lead_import_batches (done_at)
  WHERE done_at IS NOT NULL AND announced_at IS NULL;  -- imports.sql: unannounced_chunks
CREATE INDEX lead_import_batches_open ON lead_import_batches (import_id, number)
  WHERE state = 'published';  -- imports.sql: open_chunks

CREATE TABLE lead_rejects (
  import_id  uuid NOT NULL REFERENCES lead_imports ON DELETE CASCADE,
  row        bigint NOT NULL,
  line       bigint NOT NULL,
  field      text NOT NULL,
  code       text NOT NULL,
  reason     text NOT NULL,
  content    text NOT NULL,  -- the row as read, cut at 1,000 characters
  PRIMARY KEY (import_id, row)
);

-- How far each partition of leads.upstream has been stored: written in the transaction that stores its records.
CREATE TABLE upstream_offsets (
  topic        text NOT NULL,
  partition    integer NOT NULL,
  next_offset  bigint NOT NULL DEFAULT 0,
  newest       bigint NOT NULL DEFAULT -1,  -- the latest timestamp, in epoch ms, of the records before next_offset
  moved_at     timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (topic, partition)
) WITH (fillfactor = 50);
