"""``nemoguardrails chat``, in a terminal that is a pipe: one conversation, turn by turn."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.nemo.matrix.entry_points import Ask, Seen, entry_point
from tests.nemo.matrix.rig import Rig
from tests.nemo.matrix.seen import seen_in_text
from tests.nemo.matrix.servers import ROOT

_PROMPT: Final = b"> "


@dataclass
class Chat:
    """A process to talk to.

    Attributes:
        arguments: Of NeMo's command line.
    """

    arguments: tuple[str, ...]
    _process: asyncio.subprocess.Process | None = None

    async def say(self, text: str) -> str:
        """Say something and return the answer."""
        if self._process is None:
            await self._start()
        self._stdin.write(f"{text}\n".encode())
        answer = (await self._stdout.readuntil(_PROMPT)).removesuffix(_PROMPT)
        # A terminal breaks lines where it likes.
        return " ".join(answer.decode().split())

    async def end(self) -> None:
        """End the conversation; the next word begins another one."""
        if self._process is not None:
            self._process.terminate()
            await self._process.communicate()
            self._process = None

    async def _start(self) -> None:
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "nemoguardrails", *self.arguments),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        await self._stdout.readuntil(_PROMPT)


async def conversation(rig: Rig, *, options: tuple[str, ...]) -> AsyncIterator[Ask]:
    """One conversation whose turns are judged one by one, but for a new one after an outage."""
    folder = rig.write("_".join(["chat", *options]), context="last_turn")
    chat = Chat(("chat", f"--config={folder}", *options))

    async def ask(text: str) -> Seen:
        seen = seen_in_text(await chat.say(text))
        if seen is Seen.UNAVAILABLE:
            # A turn that could not be judged would be judged with the next.
            await chat.end()
        return seen

    yield ask
    await chat.end()


for name, options in (("`nemoguardrails chat`", ()), ("`nemoguardrails chat --streaming`", ("--streaming",))):
    entry_point(name, "Colang 1.0")(partial(conversation, options=options))
