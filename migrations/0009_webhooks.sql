-- Where events are posted to: of a user, or with the user '' of all users.
CREATE TABLE webhooks (
  id                  uuid PRIMARY KEY,
  user_id             text NOT NULL,
  name                text NOT NULL,
  url                 text NOT NULL,
  events              text[],       -- which are wanted; null: all
  -- What posts are signed with, and until when with the one before, too. Encrypted by a key of SECRET_KEYS, for this row alone.
  secret              text NOT NULL,
  old_secret          text,
  old_secret_ends_at  timestamptz,
  state               text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'disabled')),
  -- Nothing is posted while it fails, but for a try at due_at.
  failures            integer NOT NULL DEFAULT 0,
  failing_since       timestamptz,
  last_error          text,
  disabled_at         timestamptz,
  -- When there is something to do; null: nothing waits. One process has it by a lease; `wakes` tells it that more came meanwhile.
  due_at              timestamptz,
  leased_until        timestamptz NOT NULL DEFAULT '-infinity',
  leased_by           uuid,
  wakes               bigint NOT NULL DEFAULT 0,
  active_since        timestamptz NOT NULL DEFAULT now(),  -- what happened before is not told it
  created_at          timestamptz NOT NULL DEFAULT now(),
  updated_at          timestamptz NOT NULL DEFAULT now(),
  CHECK ((old_secret IS NULL) = (old_secret_ends_at IS NULL)),
  UNIQUE (user_id, name)  -- webhooks.sql: webhooks_of_users
) WITH (fillfactor = 50);
CREATE INDEX webhooks_due ON webhooks (due_at) WHERE due_at IS NOT NULL;  -- webhooks.sql: lease_webhooks

-- What is posted together, up to a hundred events of one user, and how that went. The body goes once it has arrived.
CREATE TABLE webhook_deliveries (
  id            uuid PRIMARY KEY,  -- webhook-id of each try; they are posted in its order
  webhook_id    uuid NOT NULL REFERENCES webhooks ON DELETE CASCADE,
  user_id       text NOT NULL,     -- whose events these are
  type          text NOT NULL CHECK (type IN ('emails.events', 'leads.events', 'test')),
  events        integer NOT NULL,
  body          text,
  created_at    timestamptz NOT NULL DEFAULT now(),
  -- the last try
  attempts      integer NOT NULL DEFAULT 0,
  attempted_at  timestamptz,
  code          smallint,          -- of the answer; null: there was none
  error         text,
  answer        text,              -- its first characters
  milliseconds  integer,
  delivered_at  timestamptz
);
CREATE INDEX webhook_deliveries_of_webhook ON webhook_deliveries (webhook_id, id);  -- webhooks.sql: list_deliveries
CREATE INDEX webhook_deliveries_waiting ON webhook_deliveries (webhook_id, id)
  WHERE delivered_at IS NULL AND type <> 'test';  -- webhooks.sql: waiting_deliveries, settle_webhook
CREATE INDEX webhook_deliveries_tests ON webhook_deliveries (id)
  WHERE type = 'test' AND attempts = 0;  -- webhooks.sql: take_tests
CREATE INDEX webhook_deliveries_by_age ON webhook_deliveries USING brin (created_at);  -- webhooks.sql: forget_deliveries

-- How far each partition of the topics of events has become deliveries: written in the transaction that adds them.
CREATE TABLE webhook_offsets (
  topic        text NOT NULL,
  partition    integer NOT NULL,
  next_offset  bigint NOT NULL DEFAULT 0,
  newest       bigint NOT NULL DEFAULT -1,  -- the latest timestamp, in epoch ms, of the records before next_offset
  PRIMARY KEY (topic, partition)
) WITH (fillfactor = 50);
