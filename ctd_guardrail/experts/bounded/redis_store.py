"""Buckets that several processes share, in Redis or Valkey. Needs the extra ``redis``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from pydantic import SecretStr

from ctd_guardrail.errors import CapStoreError, ConfigError, DependencyError
from ctd_guardrail.experts.bounded.buckets import Demand
from ctd_guardrail.runtime.runtime import Runtime

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

# Every delegated input waits for the store: a healthy server answers in a millisecond, and half a second is an outage.
_TIMEOUT_S: Final = 0.5


class RedisStore:
    """Buckets in Redis or Valkey. A server that does not answer in time is an error: the levels are then unknown.

    Args:
        url: Address, ``redis://`` or ``rediss://``.
        name: Prefix of all keys. All stores with the same name share their buckets.
        timeout_s: Seconds that one question may take.
        runtime: Runs the questions; None: the runtime of the process.

    Raises:
        ConfigError: It is not an address of Redis.
        DependencyError: The extra ``redis`` is not installed.
    """

    def __init__(
        self, url: SecretStr, *, name: str, timeout_s: float = _TIMEOUT_S, runtime: Runtime | None = None
    ) -> None:
        try:
            from redis.asyncio import Redis  # noqa: PLC0415  # an extra
        except ImportError as error:
            raise DependencyError(
                "cap_store needs the Redis client, which is not installed",
                hint="Run: pip install 'ctd-guardrail[redis]'",
            ) from error
        try:
            client = Redis.from_url(
                url.get_secret_value(),
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=None,
            )
        except ValueError:
            # The chain is cut: the client's message may quote the address, which may hold a password.
            raise ConfigError(
                "the environment variable does not hold a Redis address",
                key="custom_data.ctd.cap_store.url_env",
                hint="Write redis://HOST:PORT/0 or rediss://...",
            ) from None
        self._client: Any = client
        self._script: Any = client.register_script(_SCRIPT)
        self._name = name
        self._timeout_s = timeout_s
        self._io = (runtime or Runtime.default()).io
        self._io.close_with(self, client)

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
        return bool(await asyncio.wrap_future(self._io.submit(self._ask(keys, [str(int(takes)), *numbers]))))

    async def _ask(self, keys: list[str], arguments: list[str]) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._script(keys=keys, args=arguments)
        except Exception as error:  # noqa: BLE001  # its message may hold the address
            raise CapStoreError(
                f"the store of the caps did not answer ({type(error).__name__})",
                hint="Check that the server of cap_store is up",
            ) from None
