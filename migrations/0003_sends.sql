-- Campaign sends, the batches they are released in, and one row for each mail.

CREATE TABLE campaign_sends (
  id               uuid PRIMARY KEY,
  user_id          text NOT NULL,
  -- Single mails belong to one send for each user, lane and UTC day, which has no template or sender of its own.
  lane             text NOT NULL DEFAULT 'campaign' CHECK (lane IN ('campaign', 'bulk', 'transactional')),
  campaign_id      text NOT NULL,   -- '' in the other lanes
  idempotency_key  text,
  request_hash     bytea NOT NULL,  -- the same key with another request is a conflict
  state            text NOT NULL DEFAULT 'receiving'
                   CHECK (state IN ('receiving', 'running', 'paused', 'incomplete', 'cancelled', 'done')),
  priority         smallint NOT NULL DEFAULT 2 CHECK (priority BETWEEN 0 AND 3),  -- 0, transactional, before 1 before 2 before 3
  on_doubt         text NOT NULL DEFAULT 'resend' CHECK (on_doubt IN ('resend', 'skip')),
  template         jsonb NOT NULL,
  sender           jsonb NOT NULL,
  relay            text,            -- by name; null: whichever there is
  start_at         timestamptz,     -- nothing is released before; null: at once
  hold             boolean NOT NULL DEFAULT false,  -- paused before it could run
  selection        jsonb,           -- which stored leads; null: recipients came in the body
  selected_until   text COLLATE "C",            -- materialiser's checkpoint: the last email_key taken
  recipients       integer NOT NULL DEFAULT 0,
  recipients_hash  bytea,           -- over all pages of them so far: a stream that comes again is known by it
  next_position    integer NOT NULL DEFAULT 0,  -- release's cursor
  next_batch       integer NOT NULL DEFAULT 0,
  -- ends that recipients came to on their way in, before any batch
  suppressed       integer NOT NULL DEFAULT 0,
  duplicate        integer NOT NULL DEFAULT 0,
  invalid          integer NOT NULL DEFAULT 0,
  created_at       timestamptz NOT NULL DEFAULT now(),
  progress_at      timestamptz NOT NULL DEFAULT now(),
  ended_at         timestamptz
);
CREATE UNIQUE INDEX campaign_sends_idempotency ON campaign_sends (user_id, idempotency_key);
CREATE UNIQUE INDEX campaign_sends_active ON campaign_sends (user_id, campaign_id)
  WHERE lane = 'campaign' AND state IN ('receiving', 'running', 'paused');  -- one active send at a time per campaign
CREATE INDEX campaign_sends_of_campaign ON campaign_sends (user_id, campaign_id, id);  -- sends.sql: sends_of_campaign
CREATE INDEX campaign_sends_by_user ON campaign_sends (user_id, id) WHERE lane = 'campaign';  -- sends.sql: list_sends
CREATE INDEX campaign_sends_running ON campaign_sends (user_id, priority, id)
  WHERE state = 'running';  -- release.sql: releasable_sends, finish_sends
CREATE INDEX campaign_sends_receiving ON campaign_sends (progress_at)
  WHERE state = 'receiving';  -- sends.sql: sends_to_materialise, mark_stalled_sends
CREATE INDEX campaign_sends_unfinished_cancel ON campaign_sends (id)
  WHERE state = 'cancelled' AND ended_at IS NULL;  -- sends.sql: sends_to_cancel

CREATE TABLE campaign_send_batches (
  id              uuid PRIMARY KEY,
  send_id         uuid NOT NULL REFERENCES campaign_sends ON DELETE CASCADE,
  user_id         text NOT NULL,
  number          integer NOT NULL,  -- in its send, from 0
  first_position  integer NOT NULL,
  end_position    integer NOT NULL,  -- the first one after it
  positions       integer[],         -- of deferred mails released again; null: all from first to end
  size            integer NOT NULL,
  state           text NOT NULL DEFAULT 'released' CHECK (state IN ('released', 'claimed', 'returned', 'done')),
  epoch           integer NOT NULL DEFAULT 1,
  worker          uuid,
  -- outcomes of its mails, over all epochs
  sent            integer NOT NULL DEFAULT 0,
  deferred        integer NOT NULL DEFAULT 0,
  bounced         integer NOT NULL DEFAULT 0,
  failed          integer NOT NULL DEFAULT 0,
  unknown         integer NOT NULL DEFAULT 0,
  suppressed      integer NOT NULL DEFAULT 0,
  cancelled       integer NOT NULL DEFAULT 0,
  attempted       integer NOT NULL DEFAULT 0,  -- times that one of its mails went on the wire
  not_before      timestamptz NOT NULL DEFAULT '-infinity',  -- a returned one waits until then
  released_at     timestamptz NOT NULL DEFAULT now(),
  published_at    timestamptz,
  publications    integer NOT NULL DEFAULT 0,
  claimed_at      timestamptz,
  done_at         timestamptz,
  announced_at    timestamptz,
  UNIQUE (send_id, number)  -- sends.sql: send_counts
);
CREATE INDEX campaign_send_batches_open ON campaign_send_batches (user_id, send_id)
  WHERE state <> 'done';  -- release.sql: open_mails, returned_batches, finish_sends
CREATE INDEX campaign_send_batches_released ON campaign_send_batches (released_at)
  WHERE state = 'released';  -- release.sql: batches_to_publish
CREATE INDEX campaign_send_batches_claimed ON campaign_send_batches (worker)
  WHERE state = 'claimed';  -- workers.sql: rescue_batches; batches.sql: old_claims
CREATE INDEX campaign_send_batches_ended ON campaign_send_batches USING brin (done_at);  -- limits.sql: mails_by_user, mails_by_sending_domain, mails_by_recipient_domain, mails_by_relay
CREATE INDEX campaign_send_batches_unannounced ON campaign_send_batches (done_at)
  WHERE done_at IS NOT NULL AND announced_at IS NULL;  -- batches.sql: unannounced_batches

-- One row for each recipient of each send, in the partition of the send's month: a version 7 UUID begins with its time,
-- so a range of ids is a range of time and the primary key needs no further column.
-- No index here contains the state, in its columns or its predicate: outcomes stay HOT updates (measured: 12-27k rows/s
-- with one, 68k without). Counts by state live on the batches.
CREATE TABLE email_sends (
  send_id        uuid NOT NULL,
  position       integer NOT NULL,
  user_id        text NOT NULL,
  recipient_id   text,              -- the caller's own name for the recipient
  email          text NOT NULL,
  email_key      text COLLATE "C" NOT NULL,
  name           text NOT NULL DEFAULT '',
  variables      jsonb NOT NULL DEFAULT '{}',
  content        jsonb,             -- of a single mail: its template and sender
  mail_id        uuid,              -- of a single mail: its public id
  state          text NOT NULL DEFAULT 'queued'
                 CHECK (state IN ('queued', 'deferred', 'sent', 'bounced', 'failed', 'unknown', 'suppressed',
                                  'duplicate', 'invalid', 'cancelled')),
  attempts       smallint NOT NULL DEFAULT 0,
  tried          boolean NOT NULL DEFAULT false,  -- with on_doubt = skip: written before the first byte
  due_at         timestamptz,
  failing_since  timestamptz,       -- its first try that did not get it through
  outcome_at     timestamptz,       -- when the last outcome was written
  -- The last attempt. Without attempted_at there is none here, and `reply` says why the mail ended without one.
  attempted_at   timestamptz,
  code           smallint,
  enhanced_code  text,
  reply          text,
  relay          text,
  history        jsonb,             -- the attempts before it, the first one first
  -- What was told of it after it had been handed over. The state stays.
  bounced_at     timestamptz,
  bounce_class   text CHECK (bounce_class IN ('hard', 'soft')),
  bounce_reason  text,
  complained_at  timestamptz,
  PRIMARY KEY (send_id, position)   -- batches.sql: read_batch, write_outcomes
) PARTITION BY RANGE (send_id);
CREATE INDEX email_sends_due ON email_sends (send_id, due_at) WHERE due_at IS NOT NULL;  -- release.sql: release_due, finish_sends
CREATE INDEX email_sends_address ON email_sends (email_key, send_id);  -- sends.sql: add_recipients; recipients.sql: recipients_of_address; erasures.sql: erase_mails; mails.sql: mails_of_address

-- Which single mail a key stands for: so each is exactly one row, however often its record or its request comes. Kept longer
-- than the topic keeps records.
CREATE TABLE mail_keys (
  id          uuid PRIMARY KEY,     -- of (user, key): schemas/ids.py, mail_id
  user_id     text NOT NULL,
  send_id     uuid NOT NULL,
  position    integer NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX mail_keys_by_age ON mail_keys USING brin (created_at);  -- tasks.sql: forget_mail_keys

CREATE TABLE suppressions (
  user_id     text NOT NULL,      -- '' = for everybody
  email_key   text COLLATE "C" NOT NULL,  -- or, of an erased address, its erased_key
  reason      text NOT NULL CHECK (reason IN ('unsubscribe', 'complaint', 'bounce', 'manual', 'erased')),
  source      text NOT NULL DEFAULT '',
  created_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, email_key)
);
CREATE INDEX suppressions_erased ON suppressions (user_id) WHERE reason = 'erased';  -- batches.sql: read_batch, read_positions

-- What stands for an erased address, of one user: nobody can tell whose it was, and the same address is known when it comes
-- again. The key is the database's own, so that no process can have another one and write to somebody who was erased.
CREATE TABLE privacy_key (
  only_one  boolean PRIMARY KEY DEFAULT true CHECK (only_one),
  key       bytea NOT NULL CHECK (length(key) = 32)
);
INSERT INTO privacy_key (key) VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));

-- Hashed twice, each time behind the key: RFC 2104's construction, without its padding, which a key of one length needs not.
-- STABLE, as convert_to is: so it is inlined into the statements that ask.
CREATE FUNCTION erased_key(key bytea, user_id text, email_key text) RETURNS text LANGUAGE sql STABLE
RETURN 'erased:' || encode(sha256(key || sha256(key || convert_to(user_id || E'\n' || email_key, 'UTF8'))), 'hex');

-- Why an address must not be written to by a user, if so: suppressed for this user or for everybody, as such or erased. STABLE and
-- one SELECT, so that it is inlined. The keys are a SELECT of their own, so that they are made once for each address and not for
-- each suppression that is looked at (measured: 1,000 us a mail beside 600 of them).
CREATE FUNCTION suppressed_by(user_id text, email_key text) RETURNS TABLE (reason text) LANGUAGE sql STABLE
BEGIN ATOMIC
  SELECT x.reason FROM suppressions x
  WHERE x.user_id IN ($1, '')
    AND x.email_key = ANY ((SELECT CASE
      WHEN (SELECT true FROM suppressions e WHERE e.user_id = $1 AND e.reason = 'erased' LIMIT 1)
      THEN ARRAY[$2, erased_key((SELECT k.key FROM privacy_key k), $1, $2)] ELSE ARRAY[$2] END)::text[]);
END;

-- Proof that an address was erased. Where it has no end it broke off.
CREATE TABLE erasures (
  id            uuid PRIMARY KEY DEFAULT uuidv7(),
  user_id       text NOT NULL,
  address       text NOT NULL,  -- its erased_key
  requested_by  uuid NOT NULL REFERENCES api_keys,
  requested_at  timestamptz NOT NULL DEFAULT now(),
  finished_at   timestamptz,
  erased        jsonb           -- rows by table
);

-- Users with mails waiting. A release loop leases a user for a few seconds; `wakes` tells it that work came meanwhile.
CREATE TABLE release_users (
  user_id       text PRIMARY KEY,
  weight        real NOT NULL DEFAULT 1 CHECK (weight > 0),  -- of the user's share while others wait, too
  competing     boolean NOT NULL DEFAULT false,  -- wanted more than its share when it was last looked at
  due_at        timestamptz,       -- null: nothing to do, or woken by the end of a batch
  leased_until  timestamptz NOT NULL DEFAULT '-infinity',
  leased_by     uuid,
  wakes         bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02);  -- few rows, each written many times a second
CREATE INDEX release_users_due ON release_users (due_at) WHERE due_at IS NOT NULL;  -- release.sql: lease_users
CREATE INDEX release_users_competing ON release_users (weight) WHERE competing;  -- release.sql: measure_release

-- What each release loop releases, so that all together know the throughput.
CREATE TABLE release_loops (
  id                uuid PRIMARY KEY,
  mails_per_second  double precision NOT NULL,
  seen_at           timestamptz NOT NULL DEFAULT now()
);
