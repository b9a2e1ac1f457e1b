-- What people watch, and what could not be used.

CREATE TABLE progress_tracking (
  operation_id  uuid PRIMARY KEY,
  user_id       text NOT NULL,
  kind          text NOT NULL CHECK (kind IN ('import', 'send')),
  state         text NOT NULL,
  total         bigint,
  counts        jsonb NOT NULL DEFAULT '{}',
  started_at    timestamptz NOT NULL,
  updated_at    timestamptz NOT NULL DEFAULT now(),
  ended_at      timestamptz
);
CREATE INDEX progress_tracking_open ON progress_tracking (operation_id) WHERE ended_at IS NULL;  -- progress.sql: ended_unsettled
CREATE INDEX progress_tracking_by_user ON progress_tracking (user_id, operation_id);  -- progress.sql: list_progress

-- The mirror of the DLQ topics, unique by the coordinates of the record that failed.
CREATE TABLE dead_letters (
  id               uuid PRIMARY KEY DEFAULT uuidv7(),
  topic            text NOT NULL,
  partition        integer NOT NULL,
  "offset"         bigint NOT NULL,
  key              bytea,
  value            bytea,
  headers          jsonb NOT NULL DEFAULT '{}',
  stage            text NOT NULL,
  kind             text NOT NULL,
  code             text NOT NULL DEFAULT '',
  error            text NOT NULL DEFAULT '',
  failed_at        timestamptz NOT NULL DEFAULT now(),
  UNIQUE (topic, partition, "offset")
);

CREATE INDEX dead_letters_by_key ON dead_letters (topic, key);  -- imports.sql: mark_dead_chunks
