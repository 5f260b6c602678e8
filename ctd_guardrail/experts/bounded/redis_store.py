"""Buckets that several processes share, in Redis or Valkey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ctd_guardrail.errors import CapStoreError, StoreError
from ctd_guardrail.experts.bounded.buckets import Demand
from ctd_guardrail.runtime.redis_server import RedisServer

__all__ = ["RedisStore"]

# All buckets of a demand, in one atomic step, by the server's clock. ARGV: 1 to take or 0 to charge, then rate,
# capacity and amount for each bucket. A key expires when its bucket is full: a missing key means a full bucket.
_SCRIPT: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local levels = {}
for i, key in ipairs(KEYS) do
  local rate, capacity, amount = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1])
  local saved = redis.call('HMGET', key, 'level', 'time')
  local level = capacity
  if saved[1] and saved[2] then
    level = math.min(capacity, tonumber(saved[1]) + math.max(0, now - tonumber(saved[2])) * rate)
  end
  if ARGV[1] == '1' and level < math.min(amount, capacity) then
    return 0
  end
  levels[i] = math.min(capacity, level - amount)
end
for i, key in ipairs(KEYS) do
  local rate, capacity = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  redis.call('HSET', key, 'level', string.format('%.17g', levels[i]), 'time', string.format('%.17g', now))
  redis.call('PEXPIRE', key, math.ceil((capacity - levels[i]) / rate * 1000) + 1000)
end
return 1
"""


class RedisStore:
    """Buckets on a server. A server that does not answer in time is an error: the levels are then unknown.

    Args:
        server: The server.
        name: Prefix of all keys. All stores with the same name share their buckets.
    """

    def __init__(self, server: RedisServer, *, name: str) -> None:
        self._server = server
        self._script = server.script(_SCRIPT)
        self._name = name

    async def take(self, demands: Sequence[Demand]) -> bool:
        """Take from all buckets or from none, and say whether it was taken.

        Raises:
            CapStoreError: The store did not answer in time, or with an error.
        """
        return await self._run(demands, takes=True)

    async def charge(self, demands: Sequence[Demand]) -> None:
        """Take whatever the levels are.

        Raises:
            CapStoreError: The store did not answer in time, or with an error.
        """
        await self._run(demands, takes=False)

    async def _run(self, demands: Sequence[Demand], *, takes: bool) -> bool:
        # One slot of a cluster for all of them, so that they are taken in one step there as well.
        keys = [f"{{ctd:{self._name}}}:{demand.key}" for demand in demands]
        numbers = [repr(n) for demand in demands for n in (demand.rate, demand.capacity, demand.amount)]
        try:
            return bool(await self._server.ask(lambda _: self._script(keys=keys, args=[str(int(takes)), *numbers])))
        except StoreError as error:
            raise CapStoreError(f"the caps are unknown: {error.problem}", hint=error.hint) from None
