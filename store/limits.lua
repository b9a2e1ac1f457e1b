-- Limits on the server's clock: GCRA for seconds and minutes, counters for the hours and days of UTC.
--
-- KEYS   1 marker · 2 what was counted again · 3 factor · 4… one hash for each limit
-- ARGV   1 take | back | peek | look | reset · 2 with back: when the tokens were taken · 3 number of targets · then the tokens
--        of each target · then for each limit: its target (0: every mail passes it), 1 where the factor slows it, what the
--        ledger counts it as ('' for nothing), rate and burst of the second and of the minute, the hour's and the day's number
-- Returns the tokens of each target, the microseconds until its next one where it got fewer than asked for, the factor, the
--        time, which counters are lost (then nothing is granted), and of the limit with the fewest left: how many, and the
--        microseconds until it is full again; with look the same of each limit's second, minute, hour and day.
--
-- A hash has s and m, "TAT:step": the theoretical arrival time, in microseconds, is the moment at which the bucket is full
-- again, and the step the time of a token when it was written: what is owed stays the same number of tokens when the rate or
-- the factor changes. h and d are "window:count", the window by its number since 1970.
--
-- The marker says since when Redis remembers. A missing bucket means an idle user, but not shortly after the memory was
-- lost: then it is as if it had been emptied at that moment. A missing counter of a window that the memory does not reach
-- back to has to be counted in the ledger first.
local ORDER = { 's', 'm', 'h', 'd' }
local LENGTH = { h = 3600000000, d = 86400000000 }

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local mode, taken_at, targets = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local since = tonumber(redis.call('GET', KEYS[1]))
if not since then
  since = now
  redis.call('SET', KEYS[1], string.format('%.0f', now))
end
local factor = tonumber(redis.call('GET', KEYS[3]) or 1)

-- What is owed is kept apart from the time: together they have more digits than a number holds.
local function bucket(text, rate, burst)
  local step = 1000000 / rate
  local span = burst * step
  local owed = since + span - now
  if text then
    local tat, at = string.match(text, '^(%d+):(%S+)$')
    owed = tonumber(tat) - now
    if tonumber(at) ~= step then owed = owed * step / tonumber(at) end
  end
  owed = math.max(0, owed)
  local one = {}
  function one.free() return math.floor((span - owed) / step + 0.000001) end
  function one.use(tokens) owed = math.max(0, owed + tokens * step) end
  function one.next() return owed + step - span end
  function one.full() return owed end
  function one.text() return string.format('%.0f:%.17g', now + owed, step) end
  return one
end

local lost = {}

local function counter(text, number, kind, name)
  local length = LENGTH[name]
  local window = math.floor(now / length)
  local count = 0
  if text then
    local of, counted = string.match(text, '^(%d+):(%d+)$')
    if tonumber(of) == window then count = tonumber(counted) end
  elseif kind ~= '' and since > window * length then
    local again = tonumber(redis.call('HGET', KEYS[2], kind .. ':' .. name))
    if again ~= window then lost[#lost + 1] = kind .. ':' .. name end
  end
  local one = {}
  function one.free() return math.max(0, number - count) end
  function one.use(tokens)
    if tokens > 0 or math.floor(taken_at / length) == window then count = math.max(0, count + tokens) end
  end
  function one.clear() count = 0 end
  function one.next() return (window + 1) * length - now end
  -- A count of nothing needs no place, but where somebody has said so.
  function one.full() return (count > 0 or mode == 'reset') and one.next() or 0 end
  function one.text() return string.format('%.0f:%.0f', window, count) end
  return one
end

local limits = {}
for key = 4, #KEYS do
  local at = 3 + targets + (key - 4) * 9
  local speed = ARGV[at + 2] == '1' and factor or 1
  local kind = ARGV[at + 3]
  local held = redis.call('HMGET', KEYS[key], 's', 'm', 'h', 'd')
  local limit = { key = KEYS[key], target = tonumber(ARGV[at + 1]), parts = {} }
  for number = 1, 2 do
    local rate, burst = tonumber(ARGV[at + 2 + 2 * number]), tonumber(ARGV[at + 3 + 2 * number])
    if rate > 0 then limit.parts[ORDER[number]] = bucket(held[number], rate * speed, burst) end
  end
  for number = 3, 4 do
    local most = tonumber(ARGV[at + 5 + number])
    if most > 0 then limit.parts[ORDER[number]] = counter(held[number], most, kind, ORDER[number]) end
  end
  limits[#limits + 1] = limit
end

local function free(limit)
  local least = math.huge
  for _, part in pairs(limit.parts) do least = math.min(least, part.free()) end
  return least
end

local function wait(limit)
  local longest = 0
  for _, part in pairs(limit.parts) do
    if part.free() < 1 then longest = math.max(longest, part.next()) end
  end
  return longest
end

local function write(limit)
  local fields, full = {}, 0
  for name, part in pairs(limit.parts) do
    if part.full() > 0 then
      fields[#fields + 1], fields[#fields + 2] = name, part.text()
      full = math.max(full, part.full())
    end
  end
  redis.call('DEL', limit.key)
  if #fields > 0 then
    redis.call('HSET', limit.key, unpack(fields))
    redis.call('PEXPIREAT', limit.key, string.format('%.0f', math.ceil((now + full) / 1000)))
  end
end

if mode == 'reset' then
  for _, limit in ipairs(limits) do
    for name, part in pairs(limit.parts) do
      if part.clear then part.clear() else limit.parts[name] = nil end
    end
    write(limit)
  end
  return {}
end

-- Each target first, then the sum.
local asked, granted, all = {}, {}, 0
local left = math.huge
for _, limit in ipairs(limits) do
  if limit.target == 0 then left = math.min(left, free(limit)) end
end
for target = 1, targets do
  asked[target] = tonumber(ARGV[3 + target])
  granted[target] = asked[target]
end
if mode ~= 'back' then
  for _, limit in ipairs(limits) do
    if limit.target > 0 then granted[limit.target] = math.min(granted[limit.target], free(limit)) end
  end
  for target = 1, targets do
    granted[target] = #lost > 0 and 0 or math.max(0, math.min(granted[target], left))
    left = left - granted[target]
  end
end
for target = 1, targets do all = all + granted[target] end

local sign = mode == 'back' and -1 or 1
local shared_wait, waits = 0, {}
for target = 1, targets do waits[target] = 0 end
local fewest, full = math.huge, 0
local parts = {}
for _, limit in ipairs(limits) do
  local tokens = limit.target == 0 and all or granted[limit.target]
  if mode ~= 'look' and tokens > 0 then
    for _, part in pairs(limit.parts) do part.use(sign * tokens) end
    if mode ~= 'peek' then write(limit) end
  end
  if limit.target == 0 then
    shared_wait = math.max(shared_wait, wait(limit))
  else
    waits[limit.target] = math.max(waits[limit.target], wait(limit))
  end
  for _, name in ipairs(ORDER) do
    local part = limit.parts[name]
    if part and part.free() < fewest then
      fewest, full = part.free(), part.full()
    end
    if mode == 'look' then
      parts[#parts + 1] = part and part.free() or -1
      parts[#parts + 1] = part and math.ceil(part.full()) or -1
    end
  end
end
for target = 1, targets do
  waits[target] = granted[target] < asked[target] and math.ceil(math.max(shared_wait, waits[target])) or 0
end
if fewest == math.huge then fewest = 0 end
return { granted, waits, tostring(factor), now, lost, fewest, math.ceil(full), parts }
