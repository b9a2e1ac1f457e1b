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
  PRIMARY KEY (user_id, email_key)  -- leads.sql: upsert_leads; sends.sql: materialise_page
) WITH (fillfactor = 85);

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
CREATE INDEX lead_imports_unfinished ON lead_imports (origin_seq) WHERE state IN ('receiving', 'received');  -- imports.sql: unfinished_imports, import_of_chunk, mark_stalled_imports
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
