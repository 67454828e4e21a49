"""Letters as Celery has them on Redis: kombu's envelope, and the names of keys and channels.

=====================================  ==========================================================
`/<db>.celery.pidbox`                  channel of control requests
`/<db>.celeryev/<routing key>`         channels of events
`_kombu.binding.<exchange>`            set of the bindings to a direct exchange: of who asks
`<oid>.reply.celery.pidbox`            list of the replies to one who asks
`minicelery.asked.<exchange>`          sorted set of our bindings by the time of asking
=====================================  ==========================================================

Publishing knows no databases, so the channels carry the number.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from binascii import b2a_base64
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as quote
from typing import Any

from minicelery.broker.post import LONGEST, REPLY_TTL, Box, Letter, kind_of
from minicelery.broker.redis.envelope import SEPARATOR
from minicelery.message import new_id
from minicelery.serialization import encode_json

# To the list that is bound, by the name that askers give it or by any other.
_REPLY = f"""
local SEP = '\\6\\22'
local prefix, exchange, key, text = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local bound, usual = prefix .. '_kombu.binding.' .. exchange, key .. '.' .. exchange
if redis.call('SISMEMBER', bound, key .. SEP .. SEP .. usual) == 1 then
  redis.call('LPUSH', prefix .. usual, text)
  redis.call('EXPIRE', prefix .. usual, {REPLY_TTL:.0f})
  return
end
for _, member in ipairs(redis.call('SMEMBERS', bound)) do
  local from, to = string.find(member, SEP, 1, true)
  local _, last = string.find(member, SEP, (to or 0) + 1, true)
  if last and string.sub(member, 1, from - 1) == key then
    redis.call('LPUSH', prefix .. string.sub(member, last + 1), text)
  end
end
"""


class Places:
    """Where letters go, as Celery's options `fanout_prefix` and `fanout_patterns` have them."""

    def __init__(self, prefix: str, database: int, options: Mapping[str, Any]) -> None:
        given = options.get("fanout_prefix", True)
        start = "/{db}." if given is True else given or ""
        self._prefix = prefix
        self.deadlines = f"{prefix}_kombu.binding_deadlines"
        self._start = prefix + str(start).replace("{db}", str(database))
        self.patterns = bool(options.get("fanout_patterns", True))

    def channel(self, exchange: str, key: str) -> str:
        """Where a letter is published."""
        return f"{self._start}{exchange}/{key}" if key and self.patterns else f"{self._start}{exchange}"

    def pattern(self, box: Box) -> str | None:
        """What its listener subscribes to by a pattern; None where the one channel will do."""
        if box.kind != "topic" or not self.patterns or not {"*", "#"} & set(box.routing_key):
            return None
        start = re.sub(r"([*?\[\]\\])", r"\\\1", self.channel(box.exchange, "-")[:-1])
        return start + re.sub(r"([?\[\]\\])", r"\\\1", box.routing_key).replace("#", "*")

    def command(self, letter: Letter) -> tuple[str | int, ...]:
        """What sends a letter; the answer to PUBLISH is the number of those who hear it."""
        text, exchange, key = encode(letter), letter.exchange, letter.routing_key
        if not exchange:
            return "LPUSH", self.queue(key), text
        if kind_of(exchange) == "direct":
            return "EVAL", _REPLY, 0, self._prefix, exchange, key, text
        return "PUBLISH", self.channel(exchange, key), text

    def queue(self, name: str) -> str:
        """The key of a queue's list."""
        return self._prefix + name

    def binding(self, box: Box) -> tuple[str, str]:
        """The key of the set that binds a box to its exchange, and what binds it."""
        bound = SEPARATOR.join((box.routing_key, "", box.name))
        return f"{self._prefix}_kombu.binding.{box.exchange}", bound

    def asked(self, box: Box) -> str:
        """The key of who has asked when: who was killed is still bound."""
        return f"{self._prefix}minicelery.asked.{box.exchange}"


def encode(letter: Letter) -> str:
    """The letter as kombu's envelope."""
    return (
        f'{{"body": "{b2a_base64(letter.body, newline=False).decode()}", "content-encoding": "utf-8", '
        f'"content-type": "application/json", "headers": {encode_json(letter.headers)}, "properties": '
        f'{{"delivery_mode": {2 if letter.persistent else 1}, "delivery_info": '
        f'{{"exchange": {quote(letter.exchange)}, "routing_key": {quote(letter.routing_key)}}}, '
        f'"priority": 0, "body_encoding": "base64", "delivery_tag": "{new_id()}"}}}}'
    )


def decode(raw: bytes, exchange: str, key: str | None) -> Letter:
    """The letter in an envelope that has come to `exchange`.  Raises ValueError.

    Where the channel does not tell the routing key it is the envelope's own.
    """
    if len(raw) > 2 * LONGEST:
        raise ValueError(f"it has {len(raw)} bytes, and {2 * LONGEST} are read")
    try:
        envelope = json.loads(raw)
        properties, body, content_type = envelope["properties"], envelope["body"], envelope["content-type"]
        headers = {} if envelope.get("headers") is None else envelope["headers"]
        if content_type != "application/json":
            raise ValueError(f"its content type is {content_type!r:.80}, and application/json is read")
        if type(headers) is not dict or type(properties) is not dict or type(body) is not str:
            raise ValueError("headers and properties must be objects, and the body text")
        in_base64 = properties.get("body_encoding") == "base64"
        data = b64decode(body, validate=True) if in_base64 else body.encode()
        if key is None:
            key = properties["delivery_info"]["routing_key"]
            if type(key) is not str:
                raise ValueError("its routing key is no text")
        return Letter(exchange, key, data, headers, properties.get("delivery_mode") == 2)
    except KeyError as error:
        raise ValueError(f"its envelope has no {error}") from None
    except RecursionError:
        raise ValueError("its envelope is nested too deeply") from None
    except (TypeError, AttributeError) as error:
        raise ValueError(f"it is no envelope: {error}") from None
