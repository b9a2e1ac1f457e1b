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

-- What differs for one user from the settings' default. `rate` in tokens a second, `burst` at once after an idle time; 0 = no
-- limit of that kind.
CREATE TABLE user_limits (
  user_id     text NOT NULL,
  name        text NOT NULL CHECK (name IN ('email-sending', 'leads-import', 'api')),
  rate        double precision NOT NULL DEFAULT 0 CHECK (rate >= 0),
  burst       integer NOT NULL DEFAULT 1 CHECK (burst >= 1),
  per_minute  integer NOT NULL DEFAULT 0 CHECK (per_minute >= 0),
  per_hour    integer NOT NULL DEFAULT 0 CHECK (per_hour >= 0),
  per_day     integer NOT NULL DEFAULT 0 CHECK (per_day >= 0),
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
-- same. Imports and sends have their keys themselves.
CREATE TABLE answers (
  user_id          text NOT NULL,
  idempotency_key  text NOT NULL,
  request_hash     bytea NOT NULL,  -- the same key with another request is a conflict
  status           smallint NOT NULL,
  body             text NOT NULL,
  created_at       timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, idempotency_key)
);
CREATE INDEX answers_by_age ON answers (created_at);

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
