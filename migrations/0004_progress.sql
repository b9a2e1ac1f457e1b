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
CREATE INDEX progress_tracking_open ON progress_tracking (user_id, operation_id)
  WHERE ended_at IS NULL;  -- progress.sql: ended_unsettled, open_operations, operations_to_compare
CREATE INDEX progress_tracking_by_user ON progress_tracking (user_id, operation_id);  -- progress.sql: list_progress
CREATE INDEX progress_tracking_ended ON progress_tracking (user_id, ended_at)
  WHERE ended_at IS NOT NULL;  -- progress.sql: operations_ended_since

-- What could not be used. Records of the DLQ topics, unique by the coordinates of the record that failed; and mails that ended as
-- failed: their row is written with the outcome. A mail has one that is open while it is failed, and none while it is not.
CREATE TABLE dead_letters (
  id           uuid PRIMARY KEY DEFAULT uuidv7(),
  user_id      text NOT NULL DEFAULT '',  -- '' = it does not say whose it is
  state        text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'replayed', 'erased')),
  topic        text NOT NULL,             -- without a deployment's prefix
  partition    integer,                   -- of a record
  "offset"     bigint,
  send_id      uuid,                      -- of a mail
  position     integer,
  mail_id      uuid,                      -- its public id, if it is a single one
  key          bytea,
  value        bytea,
  headers      jsonb NOT NULL DEFAULT '{}',
  stage        text NOT NULL,
  kind         text NOT NULL,
  code         text NOT NULL DEFAULT '',
  error        text NOT NULL DEFAULT '',
  attempts     integer NOT NULL DEFAULT 1,
  failed_at    timestamptz NOT NULL DEFAULT now(),
  replays      integer NOT NULL DEFAULT 0,
  replayed_at  timestamptz,
  replayed_by  text,                      -- of a record: whose API key
  -- What has to be on Kafka, a mail on its DLQ, a replayed record on its topic, is published (again) then. Null: the broker has it.
  publish_at   timestamptz,
  UNIQUE (topic, partition, "offset"),
  CHECK (num_nulls(partition, "offset") = 0 AND num_nulls(send_id, position) = 2
         OR num_nulls(partition, "offset") = 2 AND num_nulls(send_id, position) = 0)
);
CREATE INDEX dead_letters_by_key ON dead_letters (topic, key) WHERE key IS NOT NULL;  -- imports.sql: mark_dead_chunks
CREATE INDEX dead_letters_by_user ON dead_letters (user_id, id);  -- dead_letters.sql: list_dead_letters
CREATE INDEX dead_letters_of_mail ON dead_letters (send_id, position)
  WHERE send_id IS NOT NULL;  -- recipients.sql: retry_mails; erasures.sql: erase_failed_mails
CREATE INDEX dead_letters_to_publish ON dead_letters (publish_at)
  WHERE publish_at IS NOT NULL;  -- dead_letters.sql: letters_to_publish
