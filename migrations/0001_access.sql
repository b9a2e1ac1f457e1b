-- Who may do what, and how much.

CREATE TABLE api_keys (
  id          uuid PRIMARY KEY DEFAULT uuidv7(),
  name        text NOT NULL,
  scope       text NOT NULL CHECK (scope IN ('user', 'service', 'admin')),
  user_id     text,
  key_hash    bytea NOT NULL UNIQUE,  -- sha256 of 32 random bytes
  created_at  timestamptz NOT NULL DEFAULT now(),
  expires_at  timestamptz,
  revoked_at  timestamptz,
  CHECK ((scope = 'user') = (user_id IS NOT NULL))
);

-- What differs for one user from the settings' default; null: nothing. `rate` in tokens a second, `burst` at once after an idle
-- time; 0 = no limit of that kind.
CREATE TABLE user_limits (
  user_id     text NOT NULL,
  name        text NOT NULL CHECK (name IN ('email-sending', 'leads-import', 'api')),
  rate        double precision CHECK (rate >= 0),
  burst       integer CHECK (burst >= 1),
  per_minute  integer CHECK (per_minute >= 0),
  per_hour    integer CHECK (per_hour >= 0),
  per_day     integer CHECK (per_day >= 0),
  PRIMARY KEY (user_id, name)
);

-- Limits of what all users share, as above. `target` is a domain, the name of a group of MX hosts, or a relay; '*' stands for
-- each one that has no row of its own.
CREATE TABLE shared_limits (
  kind        text NOT NULL CHECK (kind IN ('sending-domain', 'recipient-domain', 'relay')),
  target      text NOT NULL,
  rate        double precision NOT NULL DEFAULT 0 CHECK (rate >= 0),
  burst       integer NOT NULL DEFAULT 1 CHECK (burst >= 1),
  per_minute  integer NOT NULL DEFAULT 0 CHECK (per_minute >= 0),
  per_hour    integer NOT NULL DEFAULT 0 CHECK (per_hour >= 0),
  per_day     integer NOT NULL DEFAULT 0 CHECK (per_day >= 0),
  PRIMARY KEY (kind, target)
);

-- What a write with an Idempotency-Key was answered, written in the transaction of the write: the same again is answered the
-- same. Imports and sends have their keys themselves. A status of 0: begun; the body says how far it is, where it has pages.
CREATE TABLE answers (
  user_id          text NOT NULL,
  idempotency_key  text NOT NULL,
  request_hash     bytea NOT NULL,  -- the same key with another request is a conflict
  status           smallint NOT NULL,
  body             text NOT NULL,
  created_at       timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, idempotency_key)
);
CREATE INDEX answers_by_age ON answers (created_at);  -- answers.sql: forget_answers

-- One row for each life of a worker process. Fenced: it may write nothing any more.
CREATE TABLE workers (
  id            uuid PRIMARY KEY,
  kind          text NOT NULL,
  host          text NOT NULL,
  pid           integer NOT NULL,
  started_at    timestamptz NOT NULL DEFAULT now(),
  heartbeat_at  timestamptz NOT NULL DEFAULT now(),
  stopped_at    timestamptz,
  fenced_at     timestamptz
);
CREATE INDEX workers_living ON workers (heartbeat_at) WHERE fenced_at IS NULL AND stopped_at IS NULL;  -- workers.sql: fence_silent_workers

-- Where mails are handed over: relays of a user, and those for everybody, of the user ''. The password is encrypted by a key of
-- SECRET_KEYS, for this row alone.
CREATE TABLE relays (
  id              uuid PRIMARY KEY DEFAULT uuidv7(),
  user_id         text NOT NULL,
  name            text NOT NULL,
  host            text NOT NULL,
  port            integer NOT NULL CHECK (port BETWEEN 1 AND 65535),
  tls             text NOT NULL CHECK (tls IN ('none', 'starttls', 'implicit')),
  verify          boolean NOT NULL,
  ca              text,              -- PEM: only these authorities are believed
  username        text,
  password        text,
  weight          integer NOT NULL CHECK (weight >= 0),  -- 0: only when no other takes mails
  connections     integer NOT NULL CHECK (connections >= 1),
  mails_per_connection  integer NOT NULL CHECK (mails_per_connection >= 1),
  max_age         integer NOT NULL CHECK (max_age >= 1),  -- seconds of a connection
  enabled         boolean NOT NULL,
  created_at      timestamptz NOT NULL DEFAULT now(),
  updated_at      timestamptz NOT NULL DEFAULT now(),
  CHECK ((username IS NULL) = (password IS NULL)),
  UNIQUE (user_id, name)
);
