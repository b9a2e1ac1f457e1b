-- Who unsubscribed by which mail, and who came back: the proof of it, without the address, and what emails.events has still to
-- be told.
CREATE TABLE unsubscribes (
  id            uuid PRIMARY KEY DEFAULT uuidv7(),
  user_id       text NOT NULL,
  send_id       uuid NOT NULL,
  position      integer NOT NULL,
  event         text NOT NULL CHECK (event IN ('unsubscribed', 'resubscribed')),
  happened_at   timestamptz NOT NULL DEFAULT now(),
  announced_at  timestamptz
);
CREATE INDEX unsubscribes_unannounced ON unsubscribes (id) WHERE announced_at IS NULL;  -- unsubscribes.sql: unannounced_unsubscribes
