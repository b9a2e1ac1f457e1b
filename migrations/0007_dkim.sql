-- Keys that mails are signed with (DKIM): of a user, and those for everybody, of the user ''. The private one is encrypted by a
-- key of SECRET_KEYS, for this row alone.
CREATE TABLE dkim_keys (
  id            uuid PRIMARY KEY DEFAULT uuidv7(),
  user_id       text NOT NULL,
  domain        text NOT NULL,  -- A-labels, lower case
  selector      text NOT NULL,
  algorithm     text NOT NULL CHECK (algorithm IN ('rsa', 'ed25519')),
  canonicalization  text NOT NULL CHECK (canonicalization IN ('relaxed/relaxed', 'relaxed/simple')),
  public_key    text NOT NULL,  -- the tag p= of its record
  private_key   text NOT NULL,
  state         text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'active', 'retiring')),
  created_at    timestamptz NOT NULL DEFAULT now(),
  activated_at  timestamptz,
  retired_at    timestamptz,
  UNIQUE (user_id, domain, selector)
);
CREATE INDEX dkim_keys_active ON dkim_keys (id) WHERE state = 'active';  -- dkim.sql: active_dkim_keys
