-- Lowers a destination of a user at a relay, on the server's clock.
--
-- KEYS   1 which users and relays have lowered destinations, by when that is over · 2 the destinations of this one
-- ARGV   1 user and relay · 2 destination · 3 seconds that it asked for, or 0 · 4 first pause · 5 longest pause · 6 step ·
--        7 powers of two until it is as fast as before · 8 how long it is remembered after that · 9 destinations at the most
-- Returns the server's time, until when nothing goes there, and the power of two it begins with then; nothing when there are
--        too many.
--
-- A field is "until:first:strikes". Replies that come in a pause were under way before it: they make it no longer, unless they
-- ask for more. A strike after a clean step begins anew with half of the rate that was too much; one before that pauses for
-- twice as long.
local function numbers(text)
  local till, first, strikes = string.match(text, '^(%S+):(%d+):(%d+)$')
  return tonumber(till), tonumber(first), tonumber(strikes)
end

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local wait, pause, longest, step = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local top, memory = tonumber(ARGV[7]), tonumber(ARGV[8])

local function over(till, first) return till + (top - first) * step end

local held = redis.call('HGETALL', KEYS[2])
local known = nil
for at = 1, #held, 2 do
  local till, first = numbers(held[at + 1])
  if over(till, first) + memory < now then
    redis.call('HDEL', KEYS[2], held[at])
  elseif held[at] == ARGV[2] then
    known = held[at + 1]
  end
end

local till, first, strikes = 0, 0, 0
if known then till, first, strikes = numbers(known) end
if now < till then
  till = math.max(till, now + wait)
else
  if known then
    local clean = math.floor((now - till) / step)
    if clean > 0 then strikes = 0 end
    first = math.max(0, math.min(top, first + clean) - 1)
  elseif redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[9]) then
    return {}
  end
  strikes = strikes + 1
  till = now + math.max(wait, math.min(longest, pause * 2 ^ (strikes - 1)))
end

redis.call('HSET', KEYS[2], ARGV[2], string.format('%.6f:%d:%d', till, first, strikes))
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now))
redis.call('ZADD', KEYS[1], 'GT', string.format('%.6f', over(till, first)), ARGV[1])
for key, ends in pairs({ over(till, first), over(till, first) + memory }) do
  local ms = string.format('%.0f', ends * 1000)
  redis.call('PEXPIREAT', KEYS[key], ms, 'NX')
  redis.call('PEXPIREAT', KEYS[key], ms, 'GT')
end
return { string.format('%.6f', now), string.format('%.6f', till), first }
