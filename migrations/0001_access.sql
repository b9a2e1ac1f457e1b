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

-- What differs for one user from the settings' default. rate in tokens a second; 0 = no limit.
CREATE TABLE user_limits (
  user_id  text NOT NULL,
  name     text NOT NULL CHECK (name IN ('email-sending', 'leads-import', 'api')),
  rate     double precision NOT NULL CHECK (rate >= 0),
  burst    integer NOT NULL CHECK (burst >= 1),
  PRIMARY KEY (user_id, name)
);

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
