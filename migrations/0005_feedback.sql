-- What relays and mailbox providers tell about mails after they took them: bounces and complaints, by signed webhooks.

-- Who may tell: of a user, or of the user '', about everybody's mails.
CREATE TABLE feedback_sources (
  id          uuid PRIMARY KEY DEFAULT uuidv7(),  -- in the path it posts to
  user_id     text NOT NULL,
  name        text NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  UNIQUE (user_id, name)
);

-- What a source signs with: the newest, and older ones until they end. Each is encrypted by a key of SECRET_KEYS, for its row alone.
CREATE TABLE feedback_secrets (
  id          uuid PRIMARY KEY DEFAULT uuidv7(),
  source_id   uuid NOT NULL REFERENCES feedback_sources ON DELETE CASCADE,
  secret      text NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  ends_at     timestamptz  -- null: the newest
);
CREATE INDEX feedback_secrets_of_source ON feedback_secrets (source_id);  -- feedback_sources.sql: living_secrets, end_secrets

-- What was told and had an effect, once by its id at its source, and what of it emails.events has still to be told. There is no
-- reference to the source: what it told is announced when it is gone, too.
CREATE TABLE feedback_events (
  source_id     uuid NOT NULL,
  event_id      text NOT NULL,
  user_id       text NOT NULL,
  type          text NOT NULL CHECK (type IN ('bounce', 'complaint', 'delayed')),
  class         text CHECK (class IN ('hard', 'soft')),
  send_id       uuid,                -- of the mail; null: an address was told, without a mail
  position      integer,
  email_key     text COLLATE "C",    -- only without a mail
  happened_at   timestamptz NOT NULL,
  received_at   timestamptz NOT NULL DEFAULT now(),
  announced_at  timestamptz,
  PRIMARY KEY (source_id, event_id),
  CHECK ((send_id IS NULL) = (position IS NULL))
);
CREATE INDEX feedback_events_unannounced ON feedback_events (received_at) WHERE announced_at IS NULL;  -- feedback.sql: unannounced_feedback
CREATE INDEX feedback_events_by_age ON feedback_events USING brin (received_at);  -- feedback.sql: forget_feedback
CREATE INDEX feedback_events_address ON feedback_events (user_id, email_key)
  WHERE email_key IS NOT NULL;  -- feedback.sql: erase_feedback
