"""Documents in Redis: a hash that does not expire; see `minicelery.broker.archives`."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from minicelery.broker.redis.link import Script

if TYPE_CHECKING:
    from minicelery.broker.redis.broker import RedisBroker

# KEYS: hash.  ARGV: the version that follows, field, then of the old and the new document
# whether there is one, and it.
_SWAP = Script(
    "",
    """
local there = redis.call('HGET', KEYS[1], ARGV[2])
local function is(has, document)
  if has == '0' then return not there end
  return there == document
end
if is(ARGV[5], ARGV[6]) then return 1 end
if not is(ARGV[3], ARGV[4]) then return 0 end
if ARGV[5] == '0' then
  redis.call('HDEL', KEYS[1], ARGV[2])
  redis.call('HSET', KEYS[1], '', ARGV[1])
else
  redis.call('HSET', KEYS[1], '', ARGV[1], ARGV[2], ARGV[6])
end
return 1
""",
)


class RedisArchive:
    """A hash; the field without a name is its version."""

    def __init__(self, broker: RedisBroker, name: str) -> None:
        self._broker = broker
        self._key = f"{broker.base}archive.{name}"

    def version(self) -> str:
        return (self.get("") or b"").decode()

    def get(self, key: str) -> bytes | None:
        found: bytes | None = self._broker.ask(lambda link: link.call("HGET", self._key, key))
        return found

    def read(self) -> tuple[str, dict[str, bytes]]:
        flat: list[bytes] = self._broker.ask(lambda link: link.call("HGETALL", self._key))
        found = {
            key.decode(errors="replace"): value for key, value in zip(flat[::2], flat[1::2], strict=True)
        }
        return found.pop("", b"").decode(errors="replace"), found

    news = read

    def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        arguments: list[Any] = [uuid.uuid4().hex, key]
        for document in (old, new):
            arguments += [int(document is not None), document or b""]
        answer: int = self._broker.ask(lambda link: link.run(_SWAP, [self._key], arguments))
        return bool(answer)
