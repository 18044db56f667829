"""The Lua scripts of the Redis store: each is one instant for every client.

Owns their text and nothing else. KEYS are the value's string and the index; see ``redis.py`` for the layout.
"""

from __future__ import annotations

import hashlib
from typing import Final

PIECES_EXPIRE: Final = 7 * 86_400
"""Seconds after which pieces of an interrupted upload are gone."""

COUNTER_EXPIRES: Final = 7 * 86_400
"""Seconds after the last write of a store that its count is kept."""

_CREATE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return 1
"""

# Frees the pieces of a large value that is replaced or deleted.
_FREE = """
local function free(name, pieces, except)
  if redis.call('GETRANGE', name, 0, 0) ~= 'm' then return end
  local token, count = string.match(redis.call('GET', name), '^m(%x+) %d+ (%d+)$')
  if token == except then return end
  for n = 0, tonumber(count) - 1 do redis.call('UNLINK', pieces .. token .. ':' .. n) end
end
"""

_PUT = (
    _FREE
    + """
free(KEYS[1], ARGV[3], '')
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return 1
"""
)

_COMMIT = (
    _FREE
    + """
if redis.call('GET', KEYS[1]) == ARGV[2] then return 1 end
for n = 0, tonumber(ARGV[5]) - 1 do
  if redis.call('EXISTS', ARGV[3] .. ARGV[4] .. ':' .. n) == 0 then return 0 end
end
for n = 0, tonumber(ARGV[5]) - 1 do redis.call('PERSIST', ARGV[3] .. ARGV[4] .. ':' .. n) end
free(KEYS[1], ARGV[3], ARGV[4])
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], 0, ARGV[1])
return 1
"""
)

_DELETE = (
    _FREE
    + """
free(KEYS[1], ARGV[2], '')
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('UNLINK', KEYS[1])
"""
)

_GET_RANGE = """
local mark = redis.call('GETRANGE', KEYS[1], 0, 0)
if mark == '' then return false end
if mark == 'm' then return redis.call('GET', KEYS[1]) end
return mark .. redis.call('GETRANGE', KEYS[1], ARGV[1], ARGV[2])
"""

_SIZE = """
local function size(name)
  local length = redis.call('STRLEN', name)
  if length == 0 then return false end
  if length < 100 and redis.call('GETRANGE', name, 0, 0) == 'm' then
    return string.match(redis.call('GET', name), '^m%x+ (%d+) %d+$')
  end
  return tostring(length - 1)
end
"""

_STAT = _SIZE + "return size(KEYS[1])\n"

_LIST = (
    _SIZE
    + """
local out = {}
local prefix = ARGV[2]
local keys = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], '+', 'LIMIT', 0, tonumber(ARGV[3]))
for _, key in ipairs(keys) do
  if string.sub(key, 1, #prefix) ~= prefix then break end
  out[#out + 1] = key
  out[#out + 1] = size(ARGV[4] .. key) or '0'
end
return out
"""
)

# Numbers the writes of a store, so that after a restart it can be told which were lost: a suffix.
_COUNTED = """
local function write()
%s
end
local answer, number = write(), 0
if answer ~= 0 then
  local counter = string.sub(KEYS[2], 1, -2) .. 'n'
  number = redis.call('INCR', counter)
  redis.call('EXPIRE', counter, %d)
end
return {answer, number}
"""

# KEYS[1] is the counter. The number of the last write that the server had when its process ARGV[1] began.
_KEPT = """
local mark = string.sub(KEYS[1], 1, -2) .. 'r:' .. ARGV[1]
local number = redis.call('GET', mark)
if not number then
  number = redis.call('GET', KEYS[1]) or '0'
  redis.call('SET', mark, number, 'EX', ARGV[2])
end
return number
"""

_DROP = """
local count = 0
for n = 0, tonumber(ARGV[2]) - 1 do
  local name = ARGV[1] .. n
  if redis.call('TTL', name) >= 0 then count = count + redis.call('UNLINK', name) end
end
return count
"""


def _named(**sources: str) -> dict[str, tuple[str, str]]:
    # Redis names scripts by their SHA-1.
    return {
        name: (source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
        for name, source in sources.items()
    }


SCRIPTS: Final = _named(
    create=_CREATE,
    put=_PUT,
    commit=_COMMIT,
    delete=_DELETE,
    get_range=_GET_RANGE,
    stat=_STAT,
    list=_LIST,
    drop=_DROP,
    kept=_KEPT,
)
"""Name → (source, SHA-1)."""

COUNTED: Final = _named(
    **{
        name: _COUNTED % (source, COUNTER_EXPIRES)
        for name, source in (("create", _CREATE), ("put", _PUT), ("commit", _COMMIT), ("delete", _DELETE))
    }
)
"""The writes that answer with their number too: ``[answer, number]``, 0 where nothing was written."""
