-- What users attach to their mails: uploaded once, stored once, and which sends use it.

CREATE TABLE attachments (
  id            uuid PRIMARY KEY,
  user_id       text NOT NULL,
  sha256        bytea NOT NULL CHECK (length(sha256) = 32),
  filename      text NOT NULL,
  content_type  text NOT NULL,
  size          integer NOT NULL,
  data          bytea NOT NULL,
  created_at    timestamptz NOT NULL DEFAULT now(),
  used_at       timestamptz NOT NULL DEFAULT now(),  -- up to an hour late: the last time a request named it
  UNIQUE (user_id, sha256)  -- attachments.sql: add_attachment
);
-- Most of what is attached is packed already: to try it again costs more than to read it.
ALTER TABLE attachments ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX attachments_of_user ON attachments (user_id, id);  -- attachments.sql: list_attachments
CREATE INDEX attachments_by_use ON attachments (used_at);  -- attachments.sql: forget_attachments

CREATE TABLE attachment_uses (
  send_id        uuid NOT NULL REFERENCES campaign_sends ON DELETE CASCADE,
  attachment_id  uuid NOT NULL REFERENCES attachments ON DELETE CASCADE,
  PRIMARY KEY (send_id, attachment_id)  -- attachments.sql: use_attachments
);
CREATE INDEX attachment_uses_of_attachment ON attachment_uses (attachment_id);  -- attachments.sql: attachment_in_use, forget_attachments
