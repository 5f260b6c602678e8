"""The commands of NeMo Guardrails, each a process of its own, as users start it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any, Final

import httpx
from openai import AsyncOpenAI

from matrix.entry_points import Ask, MainLLM, Seen, entry_point
from matrix.rig import Rig
from matrix.seen import seen_in_check, seen_in_text

_ENGINE: Final = "Colang 1.0"


_MANY: Final = "server_of_many"
_SINGLE: Final = "server_of_one"


def start(rig: Rig) -> None:
    """Start every server: they need some seconds, in which other entry points are tried."""
    for name, folder in ((_MANY, rig.folder), (_SINGLE, rig.write("single"))):
        arguments = ["-m", "nemoguardrails", "server", "--port={port}", "--disable-chat-ui", f"--config={folder}"]
        rig.start(name, arguments, health="/v1/rails/configs")


def client(address: str) -> AsyncOpenAI:
    """Return the OpenAI client, which tries once."""
    return AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


async def completion(address: str, text: str, *, config: str, model: str = "gpt-4o-mini") -> Seen:
    """Ask for a chat completion at once."""
    async with client(address) as openai:
        reply = await openai.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], extra_body={"guardrails": {"config_id": config}}
        )
    return seen_in_text(str(reply.choices[0].message.content))


async def streamed_completion(address: str, text: str, *, config: str) -> Seen:
    """Ask for a chat completion in chunks."""
    async with client(address) as openai:
        chunks = await openai.chat.completions.create(
            model="gpt-4o-mini",
            messages=[{"role": "user", "content": text}],
            stream=True,
            extra_body={"guardrails": {"config_id": config}},
        )
        parts = [chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]
    return seen_in_text("".join(parts))


async def check(address: str, text: str, *, config: str) -> Seen:
    """Ask for the verdict alone."""
    body: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}
    async with httpx.AsyncClient(timeout=120) as http:
        reply = await http.post(f"{address}/v1/checks", json=body | {"guardrails": {"config_id": config}})
    assert reply.status_code == 200, reply.text
    return seen_in_check(reply.json())


@entry_point("`nemoguardrails server`, one configuration: `/v1/chat/completions`", _ENGINE)
async def single_server(rig: Rig) -> AsyncIterator[Ask]:
    address = await asyncio.to_thread(rig.address, _SINGLE)
    yield lambda text: completion(address, text, config="single")


@entry_point("`nemoguardrails server`, several: `/v1/chat/completions`", _ENGINE)
async def server_of_many(rig: Rig) -> AsyncIterator[Ask]:
    address = await asyncio.to_thread(rig.address, _MANY)
    rig.write("many")
    yield lambda text: completion(address, text, config="many")


@entry_point("... with `stream: true`", _ENGINE)
async def server_streams(rig: Rig) -> AsyncIterator[Ask]:
    address = await asyncio.to_thread(rig.address, _MANY)
    rig.write("streams")
    yield lambda text: streamed_completion(address, text, config="streams")


@entry_point("... another main LLM in each request", _ENGINE)
async def server_of_models(rig: Rig) -> AsyncIterator[Ask]:
    address = await asyncio.to_thread(rig.address, _MANY)
    rig.write("models")
    models = itertools.cycle(["gpt-4o-mini", "gpt-4o", "gpt-4.1"])

    async def ask(text: str) -> Seen:
        model = next(models)
        seen = await completion(address, text, config="models", model=model)
        assert seen is not Seen.ANSWER or rig.judge.answered_models[-1] == model
        return seen

    yield ask


@entry_point("... `/v1/checks`", _ENGINE, main_llm=MainLLM.NEVER, allowed=Seen.PASSED)
async def server_checks(rig: Rig) -> AsyncIterator[Ask]:
    address = await asyncio.to_thread(rig.address, _MANY)
    rig.write("checks")
    yield lambda text: check(address, text, config="checks")
