"""Limits in Redis: each question one script, one trip.  Keys and rules: `gates`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minicelery.broker.redis.gates import GATES
from minicelery.broker.redis.link import Script
from minicelery.broker.redis.scripts import COMMON
from minicelery.limits import ROOM, Ask, Wait
from minicelery.message import Outcome

if TYPE_CHECKING:
    from minicelery.broker.redis.broker import RedisBroker

# KEYS: base.  ARGV: holder, turn or nothing, whether messages wait here, room, size, lease, rate, interval.
_ADMIT = Script(
    COMMON + GATES,
    """
return gates(KEYS[1], now()).admit(ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4], tonumber(ARGV[5]),
  tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8]))
""",
)

# KEYS: base.  ARGV: (gate, holder, seconds)…
_RENEW = Script(
    COMMON + GATES,
    """
local G = gates(KEYS[1], now())
for at = 1, #ARGV, 3 do G.renew(ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])) end
return 1
""",
)

# KEYS: base.  ARGV: holder, seconds it had them, names…
_FREE = Script(
    COMMON + GATES,
    """
local G = gates(KEYS[1], now())
for at = 3, #ARGV do G.free(ARGV[at], ARGV[1], tonumber(ARGV[2])) end
return 1
""",
)

# KEYS: base.  ARGV: key, holder, milliseconds.
_CLAIM = Script(
    COMMON + GATES,
    "return gates(KEYS[1], now()).claim(ARGV[1], ARGV[2], tonumber(ARGV[3]))",
)

# KEYS: the queue's list, base.  Unique keys of calls that are running stay.
PURGE = Script(
    COMMON + GATES,
    """
local q, base = KEYS[1], KEYS[2]
local count = redis.call('ZCARD', q .. '.due') + redis.call('HLEN', q .. '.waiting')
for _, step in ipairs({'0', '3', '6', '9'}) do count = count + redis.call('LLEN', list(q, step)) end
local G = gates(base, now())
local keys = redis.call('ZRANGE', q .. '.unique', 0, -1)
if #keys > 0 then
  local running = {}
  for _, name in ipairs(redis.call('ZRANGE', q .. '.leases', 0, -1)) do
    for _, envelope in ipairs(redis.call('HVALS', q .. '.held:' .. name)) do
      local id = string.match(envelope, '"id":%s*"([^"\\\\]*)"')
      if id then running[id] = true end
    end
  end
  for _, key in ipairs(keys) do
    local holder = G.held_by(key)
    if not (holder and running[holder]) then
      redis.call('DEL', base .. key)
      redis.call('ZREM', q .. '.unique', key)
    end
  end
end
if redis.call('EXISTS', q .. '.waiting') == 1 then
  for _, gate in ipairs(redis.call('ZRANGE', base .. 'lines', 0, -1)) do G.purged(gate) end
end
redis.call('DEL', q, list(q, '3'), list(q, '6'), list(q, '9'), q .. '.due', q .. '.waiting')
return count
""",
)


class RedisLimits:
    """The store of limits; see `minicelery.broker.Limits`."""

    def __init__(self, broker: RedisBroker, parks: bool) -> None:
        self.parks = parks
        self._broker = broker
        self._keys = [broker.base]

    def admit(self, ask: Ask) -> Wait | None:
        turn = "" if ask.turn is None else f"{ask.turn:.6f}"
        answer = self._run(
            _ADMIT,
            (
                ask.id, turn, "1" if self.parks else "0",
                ask.room, ask.size, ask.lease, ask.rate, f"{ask.interval:.9f}",
            ),
        )  # fmt: skip
        if not answer:
            return None
        gate, seconds = answer[0].decode(), float(answer[2])
        if gate.startswith(ROOM):
            seconds *= random.uniform(0.9, 1.1)  # an estimate in any case
        return Wait(gate, float(answer[1]), seconds)

    def renew(self, places: Sequence[tuple[str, str, float]]) -> None:
        self._run(_RENEW, [part for place in places for part in place])

    def free(self, holder: str, release: Sequence[str], took: float = 0.0) -> None:
        self._run(_FREE, (holder, f"{took:.6f}", *release))

    def claim(self, key: str, holder: str, seconds: float) -> str:
        found: bytes = self._run(_CLAIM, (key, holder, milliseconds(seconds)))
        return found.decode()

    def close(self) -> None:
        self._broker.close()

    def _run(self, script: Script, arguments: Sequence[Any]) -> Any:
        return self._broker.ask(lambda link: link.run(script, self._keys, arguments))


def milliseconds(seconds: float) -> int:
    """As Redis takes how long something is kept."""
    return max(1, int(seconds * 1000))


def limit_arguments(base: str, list_key: str, step: str, outcome: Outcome, envelope: str) -> list[str]:
    """What an outcome does to limits, as SWAP takes it: four arguments each, like a message.

    `envelope` is that of the message if it is to be parked.
    """
    id = outcome.delivery.message.id
    arguments: list[str] = []
    if outcome.park is not None:
        gate, turn = outcome.park
        sizes = f"{len(gate.encode())} {len(id.encode())}"
        arguments += (list_key, step, f"#{turn:.6f} {sizes} {gate}{id}{base}", envelope)
    for name in outcome.release:
        arguments += ("", name, f"-{base}", id)
    return arguments
