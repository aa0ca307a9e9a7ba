//! The Lua scripts. Each checks first and writes after, and its first write is one that a full server refuses and
//! that harms nobody if it stood alone, so a refusal never leaves half a write.
//!
//! A write of a record is one script where all keys are on one server. In a cluster a connection's record and receipt
//! are apart from the keys that all connections share; then the same script, in its other form, writes only the
//! former, between [`ENTER`] and [`SETTLE`].

use std::sync::LazyLock;

use redis::cmd;

/// A script and its hash, under which the server remembers it.
pub(crate) struct Script {
    text: String,
    hash: String,
}

/// A write of a record, in both forms.
pub(crate) struct WriteScript {
    /// Record, indexes and log.
    pub(crate) whole: Script,
    /// The record alone.
    pub(crate) apart: Script,
}

impl Script {
    fn new(text: String) -> Self {
        let hash = redis::Script::new(&text).get_hash().to_owned();
        Self { text, hash }
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

impl WriteScript {
    fn new(body: &str) -> Self {
        Self {
            whole: Script::new([PRELUDE, ANNOUNCE, WHOLE, body].concat()),
            apart: Script::new([PRELUDE, APART, body].concat()),
        }
    }
}

pub(crate) static CREATE: LazyLock<WriteScript> = LazyLock::new(|| {
    WriteScript::new(
        "
if redis.call('EXISTS', record) == 1 then return decline() end
enter()
redis.call('HSET', record, 'r', revision, 'v', value, 'd', due_at)
if expires_at ~= '' then redis.call('PEXPIREAT', record, expires_at) end
keep_due()
return settle('1')
",
    )
});

pub(crate) static REPLACE: LazyLock<WriteScript> = LazyLock::new(|| {
    WriteScript::new(
        "
if redis.call('HGET', record, 'r') ~= expected then return decline() end
announce()
redis.call('HSET', record, 'r', revision, 'v', value, 'd', due_at)
keep_due()
return settle('1')
",
    )
});

pub(crate) static DELETE: LazyLock<WriteScript> = LazyLock::new(|| {
    WriteScript::new(
        "
if redis.call('HGET', record, 'r') ~= expected then return decline() end
leave()
redis.call('DEL', record)
return settle('1')
",
    )
});

pub(crate) static TAKE: LazyLock<WriteScript> = LazyLock::new(|| {
    WriteScript::new(
        "
local value = redis.call('HGET', record, 'v')
if not value then return decline() end
leave()
redis.call('DEL', record)
return settle('1' .. value)
",
    )
});

/// In a cluster, before a connection is written: from now on somebody looks after it (the unsettled set), and its
/// writers know of each other (the token). A new one is in its index before there is a record.
pub(crate) static ENTER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
local unsettled, tokens, index = unpack(KEYS)
local member, id, token, is_new = unpack(ARGV)
local now = redis.call('TIME')
redis.call('ZADD', unsettled, 'NX', now[1] * 1000 + math.floor(now[2] / 1000), member)
redis.call('HSET', tokens, id, token)
if is_new == '1' then redis.call('ZADD', index, 0, id) end
return '1'
"
        .to_owned(),
    )
});

/// … and after. What the writer saw of the record goes into the indexes if no other writer has entered meanwhile, so
/// that what stays is what the last one saw. Else it answers 0, and the writer, whose new token stands now, has to read
/// the record and come again. So it does where the writer is not found to have entered: a promoted replica may never
/// have heard of it.
pub(crate) static SETTLE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        [
            "
local unsettled, tokens, index, log, due = unpack(KEYS)
local member, id, name, token, next_token, changed, log_max, exists, due_at = unpack(ARGV)
local watched = changed
",
            ANNOUNCE,
            "
announce()
local has_entered = redis.call('ZSCORE', unsettled, member)
if not has_entered then
  local now = redis.call('TIME')
  redis.call('ZADD', unsettled, now[1] * 1000 + math.floor(now[2] / 1000), member)
end
if not has_entered or redis.call('HGET', tokens, id) ~= token then
  redis.call('HSET', tokens, id, next_token)
  return '0'
end
if exists == '1' then
  redis.call('ZADD', index, 0, id)
else
  redis.call('ZREM', index, id)
end
if exists == '1' and due_at ~= '' then
  redis.call('ZADD', due, due_at, id)
else
  redis.call('ZREM', due, id)
end
redis.call('HDEL', tokens, id)
redis.call('ZREM', unsettled, member)
return '1'
",
        ]
        .concat(),
    )
});

/// … or, where nothing was written.
pub(crate) static WITHDRAW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
local unsettled, tokens = unpack(KEYS)
local member, id, token = unpack(ARGV)
redis.call('ZREM', unsettled, member)
if redis.call('HGET', tokens, id) == token then redis.call('HDEL', tokens, id) end
return '1'
"
        .to_owned(),
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
  redis.call('ZREM', prefix .. ':{c}:due:' .. kind, id)
  redis.call('ZREM', expiries, name)
end
return #due
"
        .to_owned(),
    )
});

/// A page of what is due, as id and time by turns. Writes nothing. Many may be due at the same time, and the entry
/// where the last page ended may be gone, so the place to go on from is searched for by halves. Bytes are compared
/// by hand: Lua would ask the server's locale, and the set does not.
pub(crate) static DUE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
local due = KEYS[1]
local till, limit, at, after = unpack(ARGV)

local function is_past(id)
  for i = 1, math.min(#id, #after) do
    local one, other = string.byte(id, i), string.byte(after, i)
    if one ~= other then return one > other end
  end
  return #id > #after
end

local first = 0
if at ~= '' then
  first = redis.call('ZCOUNT', due, '-inf', '(' .. at)
  local past = redis.call('ZCOUNT', due, '-inf', at)
  while first < past do
    local middle = math.floor((first + past) / 2)
    if is_past(redis.call('ZRANGE', due, middle, middle)[1]) then past = middle else first = middle + 1 end
  end
end
local past = math.min(first + limit, redis.call('ZCOUNT', due, '-inf', till))
if past <= first then return {} end
return redis.call('ZRANGE', due, first, past - 1, 'WITHSCORES')
"
        .to_owned(),
    )
});

/// Before each write of a record: the receipt, and what the scripts share. Numbers beyond 2^53 and times are kept as
/// text: Lua's own numbers are doubles.
const PRELUDE: &str = "
local record, receipt, index, log, expiries, due = unpack(KEYS)
local receipt_life, repeated, id, name, watched, log_max, revision, value, expected, expires_at, due_at
  = unpack(ARGV)

local known = redis.call('GET', receipt)
if known then
  -- Also a write: a replica refuses it, instead of telling what the primary may have lost; and a `WAIT` behind it
  -- counts who has it, and so all that was written before it.
  redis.call('PEXPIRE', receipt, receipt_life)
  return known
end

local function settle(outcome)
  redis.call('SET', receipt, outcome, 'PX', receipt_life)
  return outcome
end

-- Only a repeat needs to hold back an original that is still on its way.
local function decline()
  if repeated == '1' then return settle('0') end
  return '0'
end
";

const ANNOUNCE: &str = "
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
";

const WHOLE: &str = "
local function keep_due()
  if due_at == '' then
    redis.call('ZREM', due, id)
  else
    redis.call('ZADD', due, due_at, id)
  end
end

local function enter()
  announce()
  redis.call('ZADD', index, 0, id)
  if expires_at == '' then
    redis.call('ZREM', expiries, name)
  else
    redis.call('ZADD', expiries, expires_at, name)
  end
end

local function leave()
  announce()
  redis.call('ZREM', index, id)
  redis.call('ZREM', expiries, name)
  redis.call('ZREM', due, id)
end
";

const APART: &str = "
local function announce() end
local function enter() end
local function keep_due() end
local function leave() end
";
