"""The IORails engine as a library, through the class ``Guardrails``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from nemoguardrails import Guardrails, RailsConfig

from ctd_guardrail.nemo.iorails import install
from tests.nemo.matrix.colang import asking, conversation
from tests.nemo.matrix.entry_points import Ask, MainLLM, Seen, entry_point
from tests.nemo.matrix.rig import Rig
from tests.nemo.matrix.seen import seen_in_check, seen_in_stream, seen_in_text

_ENGINE: Final = "IORails"


def app(rig: Rig, name: str, **config: Any) -> Guardrails:
    """Build an app from a configuration of its own."""
    install()
    return Guardrails(RailsConfig.from_path(str(rig.write(f"iorails_{name}", **config))), require_iorails=True)


def input_rails(**settings: Any) -> dict[str, Any]:
    """Return the section ``rails``."""
    return {"input": {"flows": ["ctd check input"], **settings}}


@entry_point("`Guardrails.generate_async`", _ENGINE)
async def iorails_generate_async(rig: Rig) -> AsyncIterator[Ask]:
    async with app(rig, "generate_async") as rails:
        yield asking(rails)


@entry_point("`Guardrails.generate`", _ENGINE)
async def iorails_generate(rig: Rig) -> AsyncIterator[Ask]:
    rails = app(rig, "generate")

    async def ask(text: str) -> Seen:
        reply: Any = await asyncio.to_thread(rails.generate, messages=conversation(text))
        return seen_in_text(reply["content"])

    yield ask


@entry_point("`Guardrails.check_async`", _ENGINE, main_llm=MainLLM.NEVER, allowed=Seen.PASSED)
async def iorails_check_async(rig: Rig) -> AsyncIterator[Ask]:
    async with app(rig, "check_async") as rails:

        async def ask(text: str) -> Seen:
            return seen_in_check(await rails.check_async(conversation(text)))

        yield ask


@entry_point("`Guardrails.stream_async`", _ENGINE)
async def iorails_stream_async(rig: Rig) -> AsyncIterator[Ask]:
    async with app(rig, "stream_async") as rails:

        async def ask(text: str) -> Seen:
            chunks = rails.stream_async(messages=conversation(text))
            return seen_in_stream("".join([str(chunk) async for chunk in chunks]))

        yield ask


@entry_point("`rails.input.parallel: true`", _ENGINE)
async def iorails_parallel(rig: Rig) -> AsyncIterator[Ask]:
    async with app(rig, "parallel", rails=input_rails(parallel=True)) as rails:
        yield asking(rails)


@entry_point("`rails.input.speculative_generation: true`", _ENGINE, main_llm=MainLLM.BESIDE)
async def iorails_speculative(rig: Rig) -> AsyncIterator[Ask]:
    async with app(rig, "speculative", rails=input_rails(speculative_generation=True)) as rails:
        yield asking(rails)
