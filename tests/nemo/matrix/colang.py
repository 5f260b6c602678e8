"""``LLMRails``, the engine that runs Colang, as a library."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from nemoguardrails import Guardrails, LLMRails, RailsConfig

from tests.nemo.matrix.entry_points import Ask, MainLLM, Seen, entry_point
from tests.nemo.matrix.rig import Rig
from tests.nemo.matrix.seen import seen_in_check, seen_in_exception, seen_in_text

_ENGINE: Final = "Colang 1.0"


def app(rig: Rig, name: str, **config: Any) -> LLMRails:
    """Build an app from a configuration of its own."""
    return LLMRails(RailsConfig.from_path(str(rig.write(name, **config))))


def conversation(text: str) -> list[dict[str, Any]]:
    """Return a conversation of one user turn."""
    return [{"role": "user", "content": text}]


def asking(rails: Any) -> Ask:
    """Return the plain way to ask an app."""

    async def ask(text: str) -> Seen:
        return seen_in_text((await rails.generate_async(messages=conversation(text)))["content"])

    return ask


@entry_point("`LLMRails.generate_async`", _ENGINE)
async def generate_async(rig: Rig) -> AsyncIterator[Ask]:
    yield asking(app(rig, "generate_async"))


@entry_point("`LLMRails.generate`", _ENGINE)
async def generate(rig: Rig) -> AsyncIterator[Ask]:
    rails = app(rig, "generate")

    async def ask(text: str) -> Seen:
        return seen_in_text((await asyncio.to_thread(rails.generate, messages=conversation(text)))["content"])

    yield ask


@entry_point("`LLMRails.generate`, each call on a new thread", _ENGINE)
async def generate_on_threads(rig: Rig) -> AsyncIterator[Ask]:
    rails = app(rig, "generate_on_threads")

    async def ask(text: str) -> Seen:
        with ThreadPoolExecutor(1) as thread:
            reply = thread.submit(rails.generate, messages=conversation(text))
            return seen_in_text((await asyncio.wrap_future(reply))["content"])

    yield ask


@entry_point("`asyncio.run(LLMRails.generate_async)`, again and again", _ENGINE)
async def generate_in_new_loops(rig: Rig) -> AsyncIterator[Ask]:
    rails = app(rig, "generate_in_new_loops")

    async def ask(text: str) -> Seen:
        reply = await asyncio.to_thread(lambda: asyncio.run(rails.generate_async(messages=conversation(text))))
        return seen_in_text(reply["content"])

    yield ask


@entry_point("`generate_async` with `rails: [input]`", _ENGINE, main_llm=MainLLM.NEVER, allowed=Seen.PASSED)
async def rails_only(rig: Rig) -> AsyncIterator[Ask]:
    rails = app(rig, "rails_only")

    async def ask(text: str) -> Seen:
        result: Any = await rails.generate_async(messages=conversation(text), options={"rails": ["input"]})
        content = result.response[0]["content"]
        # Nothing is generated: what passes comes back as it was.
        return Seen.PASSED if content == text else seen_in_text(content)

    yield ask


@entry_point("`LLMRails.check_async`", _ENGINE, main_llm=MainLLM.NEVER, allowed=Seen.PASSED)
async def check_async(rig: Rig) -> AsyncIterator[Ask]:
    rails = app(rig, "check_async")

    async def ask(text: str) -> Seen:
        return seen_in_check(await rails.check_async(conversation(text)))

    yield ask


@entry_point("`LLMRails.stream_async`", _ENGINE)
async def stream_async(rig: Rig) -> AsyncIterator[Ask]:
    rails = app(rig, "stream_async")

    async def ask(text: str) -> Seen:
        return seen_in_text("".join([str(chunk) async for chunk in rails.stream_async(messages=conversation(text))]))

    yield ask


@entry_point("`rails.input.parallel: true`", _ENGINE)
async def parallel(rig: Rig) -> AsyncIterator[Ask]:
    yield asking(app(rig, "parallel", rails={"input": {"parallel": True, "flows": ["ctd check input"]}}))


@entry_point("`enable_rails_exceptions: true`", _ENGINE)
async def exceptions(rig: Rig) -> AsyncIterator[Ask]:
    rails = app(rig, "exceptions", enable_rails_exceptions=True)

    async def ask(text: str) -> Seen:
        return seen_in_exception(await rails.generate_async(messages=conversation(text)))

    yield ask


@entry_point("`Guardrails(use_iorails=False).generate_async`", _ENGINE)
async def guardrails_class(rig: Rig) -> AsyncIterator[Ask]:
    yield asking(Guardrails(RailsConfig.from_path(str(rig.write("guardrails_class"))), use_iorails=False))
