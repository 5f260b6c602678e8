"""The memory that several processes share, so that no turn of a conversation is judged by each of them."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Any, Final

from pydantic import SecretBytes

from ctd_guardrail.decision import Decision
from ctd_guardrail.errors import StoreError
from ctd_guardrail.runtime.cancellation import watch_cancellation
from ctd_guardrail.runtime.memory import LocalMemory, Memory, Placement, keyed
from ctd_guardrail.runtime.redis_server import RedisServer
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared import Shared
from ctd_guardrail.runtime.signed_decisions import SignedDecisions

__all__ = ["SharedMemory", "shared_memories"]

log = logging.getLogger(__name__)

# The server is left alone for this long after an outage. Otherwise each request would wait for the timeout.
_PAUSE_S: Final = 5.0
# The script looks for this many of the latest turns.
_LONGEST_SEARCH: Final = 64
# Conversations that may wait at one turn, such as a popular greeting.
_MOST_WAITING: Final = 1_024
_NAME_BYTES: Final = 16
_NAME: Final = re.compile(rb"[0-9a-f]{32}")

# One atomic step of `place`. KEYS: two for the request's own digest, then two for each earlier one, latest first: the
# name that was there last, and the list of names that wait there. ARGV: a fresh name, milliseconds that a key is kept,
# and the longest list.
_PLACE: Final = """
local fresh, keep, most = ARGV[1], ARGV[2], tonumber(ARGV[3])
local function wait(name, is_placed)
  redis.call('SET', KEYS[1], name, 'PX', keep)
  redis.call('RPUSH', KEYS[2], name)
  redis.call('LTRIM', KEYS[2], -most, -1)
  redis.call('PEXPIRE', KEYS[2], keep)
  return {name, is_placed}
end
if #KEYS == 2 then
  return wait(fresh, 1)
end
local here = redis.call('GET', KEYS[1])
for i = 3, #KEYS, 2 do
  local waiting = redis.call('RPOP', KEYS[i + 1])
  if waiting then
    redis.call('SET', KEYS[i], waiting, 'PX', keep)
    return wait(waiting, 1)
  end
  local last = redis.call('GET', KEYS[i])
  if last then
    return wait(here or last, 1)
  end
end
if here then
  return wait(here, 1)
end
return wait(fresh, 0)
"""


class SharedMemory(Memory):
    """A memory on a server, behind the memory of this process. Serves any number of threads and event loops.

    The server holds no text: names are keyed hashes. Its entries are signed: one that was not written with the key
    counts as not remembered. An entry is kept for a time, so nothing grows without bound.

    A server that does not answer in time costs no verdict. Until it answers again, this process remembers by itself:
    turns are judged again, and the place of a conversation is unknown.

    Args:
        server: The server.
        name: Prefix of all names. All memories with the same name and key share their entries.
        key: Secret of 16 to 64 bytes, the same in all processes.
        keep_s: Seconds for which an entry is kept.
        local: The memory of this process.
        clock: Seconds that never go back.

    Attributes:
        answers: Answers that the main LLM gave in this process.
        outages: Number of questions that the server did not answer in time.
        forgeries: Number of entries that were not written with the key.
    """

    def __init__(
        self,
        server: RedisServer,
        *,
        name: str,
        key: SecretBytes,
        keep_s: float,
        local: LocalMemory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.outages = 0
        self.forgeries = 0
        self._server = server
        self._place = server.script(_PLACE)
        self._prefix = f"{{ctd:{name}}}:memory:"
        self._signed = SignedDecisions(key)
        self._keep_ms = round(1000 * keep_s)
        self.answers = local.answers
        self._local = local
        self._clock = clock
        self._lock = threading.Lock()
        self._silent_until: float | None = None  # None: the server answers

    async def recall(self, judgement_key: str, unit: str) -> Decision | None:
        """Return the decision about a unit, or None if no process remembers one."""
        known = await self._local.recall(judgement_key, unit)
        if known is not None:
            return known
        await self._fetch(judgement_key, [unit])
        return await self._local.recall(judgement_key, unit)

    async def prefetch(self, judgement_key: str, units: Callable[[], Iterable[str]]) -> None:
        """Bring the decisions about several units into this process, in one question."""
        missing = [unit for unit in units() if await self._local.recall(judgement_key, unit) is None]
        if len(missing) > 1:
            await self._fetch(judgement_key, missing)

    async def remember(self, judgement_key: str, unit: str, decision: Decision) -> None:
        """Keep a decision for all processes, unless a failure policy made it."""
        await self._local.remember(judgement_key, unit, decision)
        if not decision.reason.is_failure:
            name = self._signed.name(judgement_key, unit)
            entry = self._signed.write(name, decision)
            await self._ask(lambda client: client.set(self._prefix + name, entry, px=self._keep_ms))

    def note_answer(self, answer: str) -> None:
        """Keep the digest of an answer for all processes. It does not wait for the server."""
        self._local.note_answer(answer)
        name = self._signed.answer_name(answer)
        entry = self._signed.write_answer(name)
        self._server.tell(self._ask(lambda client: client.set(self._prefix + name, entry, px=self._keep_ms)))

    async def knows_answer(self, answer: str) -> bool:
        """Return whether the main LLM gave an answer at any process."""
        if await self._local.knows_answer(answer):
            return True
        name = self._signed.answer_name(answer)
        (entry,) = await self._get([name])
        if entry is None:
            return False
        if not self._signed.is_answer(name, entry):
            self._count_forgery()
            return False
        self._local.note_answer(answer)
        return True

    async def place(self, before: Sequence[bytes], now: bytes) -> Placement:
        """Return the conversation of a request; see :meth:`Memory.place`. It looks for the latest 64 earlier turns."""
        turns = (now, *reversed(before[-_LONGEST_SEARCH:]))
        digests = [keyed(turn, self._signed.turn_key) for turn in turns]
        keys = [f"{self._prefix}{part}:{digest}" for digest in digests for part in ("last", "waiting")]
        args = [secrets.token_hex(_NAME_BYTES), str(self._keep_ms), str(_MOST_WAITING)]
        answer = await self._ask(lambda _: self._place(keys=keys, args=args))
        match answer:
            case None:
                pass
            case [bytes() as name, int() as is_placed] if _NAME.fullmatch(name):
                return Placement(name.decode("ascii"), digests[0], bool(is_placed))
            case _:
                self._count_forgery()
        return (await self._local.place(before, now))._replace(is_placed=False)

    async def ping(self) -> None:
        """Ask the server whether it is there.

        Raises:
            StoreError: It did not answer in time.
        """
        await self._server.ask(lambda client: client.ping())

    async def _fetch(self, judgement_key: str, units: Sequence[str]) -> None:
        """Bring the decisions about units into this process, in one question."""
        names = [self._signed.name(judgement_key, unit) for unit in units]
        for unit, name, entry in zip(units, names, await self._get(names), strict=True):
            decision = None if entry is None else self._signed.read(name, entry)
            if decision is not None:
                await self._local.remember(judgement_key, unit, decision)
            elif entry is not None:
                self._count_forgery()

    async def _get(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the entries of these names, None for each that is missing."""
        # With MGET, an entry of another type counts as missing.
        entries = await self._ask(lambda client: client.mget([self._prefix + name for name in names]))
        if not isinstance(entries, list) or len(entries) != len(names):
            return [None] * len(names)
        return [entry if isinstance(entry, bytes | None) else b"" for entry in entries]

    def _count_forgery(self) -> None:
        self.forgeries += 1
        log.error("the shared memory holds an entry that this deployment did not write; it is ignored")

    async def _ask(self, question: Callable[[Any], Awaitable[Any]]) -> Any:
        """Return the server's answer, or None while the server does not answer."""
        if not self._may_ask():
            return None
        is_cancelled = watch_cancellation()
        try:
            answer = await self._server.ask(question)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            return self._lose_server("the question was cancelled")  # the I/O thread ends
        except StoreError as error:
            return self._lose_server(error.problem)
        except Exception as error:  # noqa: BLE001  # a memory costs no verdict, whatever it is
            return self._lose_server(type(error).__name__)
        if self._silent_until is not None:
            self._silent_until = None
            log.info("the server of `store` answers again: the memory is shared")
        return answer

    def _may_ask(self) -> bool:
        if self._silent_until is None:
            return True
        with self._lock:
            now = self._clock()
            if self._silent_until is not None and now < self._silent_until:
                return False
            # One request tries. The others go on without the server until it has an answer.
            self._silent_until = now + _PAUSE_S
            return True

    def _lose_server(self, problem: str) -> None:
        with self._lock:
            self.outages += 1
            was_lost, self._silent_until = self._silent_until is not None, self._clock() + _PAUSE_S
        if not was_lost:
            log.warning("%s: until it does, this process remembers by itself", problem)


def shared_memories(runtime: Runtime) -> Shared[Hashable, SharedMemory]:
    """Return the shared memories that the guards of a runtime use."""
    return runtime.shared("shared memories")
