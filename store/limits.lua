-- GCRA on the server's clock. Each bucket is one number, its theoretical arrival time (TAT) in microseconds: the moment at
-- which it is full again. A bucket with rate 1/T and burst b grants at most (now + b*T - TAT) / T tokens.
--
-- KEYS[1] marker, KEYS[2..] buckets; ARGV[1] tokens, ARGV[2] take | peek | back, then a rate and a burst for each bucket.
-- Returns the tokens granted by all buckets together (the smallest grant) and the microseconds until one is there.
--
-- The marker says since when Redis remembers. A missing bucket means an idle user, but not shortly after the memory was
-- lost: then it is as if it had been emptied at that moment.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local tokens, mode = tonumber(ARGV[1]), ARGV[2]

local since = tonumber(redis.call('GET', KEYS[1]))
if not since then
  since = now
  redis.call('SET', KEYS[1], string.format('%.0f', now))
end

local tats, steps, spans = {}, {}, {}
local granted, wait = tokens, 0
for i = 2, #KEYS do
  local step = 1000000 / tonumber(ARGV[2 * i - 1])
  local span = tonumber(ARGV[2 * i]) * step
  local tat = math.max(now, tonumber(redis.call('GET', KEYS[i]) or since + span))
  local free = math.floor((now + span - tat) / step + 0.000001)
  if free < granted then granted = free end
  if free < 1 then wait = math.max(wait, tat + step - span - now) end
  tats[i], steps[i], spans[i] = tat, step, span
end
granted = math.max(granted, 0)

local change = 0
if mode == 'take' then change = granted elseif mode == 'back' then change = -tokens end
if change ~= 0 then
  for i = 2, #KEYS do
    local tat = math.max(now, tats[i] + change * steps[i])
    local idle = math.max(1, math.ceil((tat - now) / 1000))
    redis.call('SET', KEYS[i], string.format('%.0f', tat), 'PX', idle)
  end
end
return { granted, math.ceil(wait) }
