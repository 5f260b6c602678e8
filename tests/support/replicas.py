"""Guards of several processes, as far as a guard can tell: each has a runtime of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from pydantic import SecretBytes, SecretStr

from ctd_guardrail.decision import Decision, Verdict
from ctd_guardrail.observability.events import Event, Served
from ctd_guardrail.runtime.redis_server import RedisServer
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.runtime.shared_memory import SharedMemory
from tests.support.cascades import CountedCascade
from tests.support.word_guard import WordJudge, WordReader, word_guard

__all__ = ["Replicas"]

_KEY: Final = SecretBytes(b"a secret of the deployment")


class Replicas:
    """Replicas of one guard behind a balancer that ignores conversations.

    Args:
        number: Number of replicas.
        url: Address of the server that they share; None: each remembers by itself.
        timeout_s: Seconds for one question to the server.
        settings: Settings and parts of each guard.

    Attributes:
        judge: The expert of all of them.
        reader: The base model of all of them.
        events: What they emitted.
        memories: Their memories.
    """

    def __init__(self, number: int, url: str | None, *, timeout_s: float = 30.0, **settings: Any) -> None:
        self.judge, self.reader = WordJudge(), WordReader()
        self.events: list[Event] = []
        self.memories: list[SharedMemory] = []
        self._timeout_s = timeout_s
        self._servers: list[RedisServer] = []
        self._runtimes = [Runtime() for _ in range(number)]
        self._guards = [self._guard(runtime, url, settings) for runtime in self._runtimes]
        self._next = 0

    def _guard(self, runtime: Runtime, url: str | None, settings: dict[str, Any]) -> CountedCascade:
        if url is not None:
            server = RedisServer(SecretStr(url), timeout_s=self._timeout_s, runtime=runtime)
            self._servers.append(server)
            memory = SharedMemory(server, name="app", key=_KEY, keep_s=60.0, local=runtime.memory)
            self.memories.append(memory)
            settings = settings | {"memory": memory}
        return word_guard(
            judge=self.judge,
            reader=self.reader,
            judgement_key="words",
            emit=self.events.append,
            runtime=runtime,
            **settings,
        )

    async def check(self, messages: list[dict[str, Any]]) -> Decision:
        """Send a request to the next replica."""
        guard = self._guards[self._next % len(self._guards)]
        self._next += 1
        return await guard.check(messages)

    async def talk(
        self, turns: list[str], after: Callable[[int], None] = lambda _: None, *, notes: bool = False
    ) -> list[Verdict]:
        """Send a conversation turn by turn, each with the whole history.

        Args:
            turns: The user's turns.
            after: Called after each turn.
            notes: Whether the replica that serves a turn gets to know the main LLM's answer.
        """
        messages: list[dict[str, Any]] = []
        verdicts = []
        for number, turn in enumerate(turns):
            messages.append({"role": "user", "content": turn})
            decision = await self.check(messages)
            verdicts.append(decision.verdict)
            messages.append({"role": "assistant", "content": f"answer {number}"})
            if notes:
                await self._note(f"answer {number}")
            after(number)
        return verdicts

    async def _note(self, answer: str) -> None:
        """Note a new answer at the replica that served last, and wait until the server has it."""
        before = await self._entries()
        self._guards[(self._next - 1) % len(self._guards)].note_answer(answer)
        async with asyncio.timeout(60):
            while self._servers and await self._entries() == before:  # noqa: ASYNC110  # nothing says when
                await asyncio.sleep(0.001)

    async def _entries(self) -> int:
        return int(await self._servers[0].ask(lambda client: client.dbsize())) if self._servers else 0

    @property
    def served(self) -> list[Served]:
        """What each request has used, in order."""
        return [event for event in self.events if isinstance(event, Served)]

    def forget(self) -> None:
        """Forget what each process remembers by itself."""
        for runtime in self._runtimes:
            runtime.memory.clear()

    def close(self) -> None:
        """Close all runtimes."""
        for runtime in self._runtimes:
            runtime.close()
