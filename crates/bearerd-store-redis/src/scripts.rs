//! The Lua scripts. Each checks first and writes after, and its first write is one that a full server refuses and
//! that harms nobody if it stood alone, so a refusal never leaves half a write.

use std::sync::LazyLock;

use redis::cmd;

/// A script and its hash, under which the server remembers it.
pub(crate) struct Script {
    text: String,
    hash: String,
}

impl Script {
    fn new(text: String) -> Self {
        let hash = redis::Script::new(&text).get_hash().to_owned();
        Self { text, hash }
    }

    fn write(body: &str) -> Self {
        Self::new(format!("{PRELUDE}{body}"))
    }

    pub(crate) fn by_hash(&self) -> redis::Cmd {
        let mut command = cmd("EVALSHA");
        command.arg(&self.hash);
        command
    }

    /// For a server that does not remember it.
    pub(crate) fn in_full(&self) -> redis::Cmd {
        let mut command = cmd("EVAL");
        command.arg(&self.text);
        command
    }
}

pub(crate) static CREATE: LazyLock<Script> = LazyLock::new(|| {
    Script::write(
        "
local value, expires_at = first, second
if redis.call('EXISTS', record) == 1 then return decline() end
announce()
redis.call('ZADD', index, 0, id)
if expires_at == '' then
  redis.call('ZREM', expiries, name)
else
  redis.call('ZADD', expiries, expires_at, name)
end
redis.call('HSET', record, 'r', revision, 'v', value)
if expires_at ~= '' then redis.call('PEXPIREAT', record, expires_at) end
return settle('1')
",
    )
});

pub(crate) static REPLACE: LazyLock<Script> = LazyLock::new(|| {
    Script::write(
        "
local value, expected = first, second
if redis.call('HGET', record, 'r') ~= expected then return decline() end
announce()
redis.call('HSET', record, 'r', revision, 'v', value)
return settle('1')
",
    )
});

pub(crate) static DELETE: LazyLock<Script> = LazyLock::new(|| {
    Script::write(
        "
local expected = second
if redis.call('HGET', record, 'r') ~= expected then return decline() end
announce()
remove()
return settle('1')
",
    )
});

pub(crate) static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::write(
        "
local value = redis.call('HGET', record, 'v')
if not value then return decline() end
announce()
remove()
return settle('1' .. value)
",
    )
});

/// Forgets what is due, and the index entries of what Redis has expired by itself.
pub(crate) static SWEEP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
local expiries = KEYS[1]
local prefix, now, limit = unpack(ARGV)
local due = redis.call('ZRANGEBYSCORE', expiries, '-inf', now, 'LIMIT', 0, limit)
for _, name in ipairs(due) do
  local kind, id = string.match(name, '^([^:]*):(.*)$')
  local record = prefix .. ':{c}:r:' .. name
  if kind == 'connection' then record = prefix .. ':{' .. id .. '}:connection' end
  redis.call('DEL', record)
  redis.call('ZREM', prefix .. ':{c}:i:' .. kind, id)
  redis.call('ZREM', expiries, name)
end
return #due
"
        .to_owned(),
    )
});

/// Before each write: the receipt, and what the scripts share. Numbers beyond 2^53 and times are kept as text: Lua's
/// own numbers are doubles.
const PRELUDE: &str = "
local record, receipt, index, log, expiries = unpack(KEYS)
local receipt_life, repeated, id, name, watched, log_max, revision, first, second = unpack(ARGV)

local known = redis.call('GET', receipt)
if known then return known end

local function settle(outcome)
  redis.call('SET', receipt, outcome, 'PX', receipt_life)
  return outcome
end

-- Only a repeat needs to hold back an original that is still on its way.
local function decline()
  if repeated == '1' then return settle('0') end
  return '0'
end

local function announce()
  if watched ~= '1' then return end
  local now = redis.call('TIME')
  local counter = tonumber(now[1]) * 1000000 + tonumber(now[2])
  local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if newest then
    local last = tonumber(string.match(newest[1], '^%d+'))
    if counter <= last then counter = last + 1 end
  end
  redis.call('XADD', log, 'MAXLEN', log_max + 1, string.format('%.0f-0', counter), 'k', name)
end

local function remove()
  redis.call('ZREM', index, id)
  redis.call('ZREM', expiries, name)
  redis.call('DEL', record)
end
";
