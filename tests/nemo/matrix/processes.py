"""The commands of NeMo Guardrails, each a process of its own, as users start it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import httpx
from openai import APIError, AsyncOpenAI

from tests.nemo.matrix.entry_points import Ask, MainLLM, Seen, entry_point
from tests.nemo.matrix.rig import Rig
from tests.nemo.matrix.seen import seen_in_check, seen_in_stream, seen_in_text

# Engine, its short name, the environment that chooses it, and the command line that knows the rail by itself.
_ENGINES: Final = (
    ("Colang 1.0", "colang", {}, "nemoguardrails"),
    ("IORails", "iorails", {"NEMO_GUARDRAILS_IORAILS_ENGINE": "1"}, "ctd_guardrail.nemo"),
)


def start(rig: Rig) -> None:
    """Start every server: they need some seconds, in which other entry points are tried."""
    # A server of several configurations runs this file before it reads any of them.
    (rig.folder / "config.py").write_text("from ctd_guardrail.nemo.config import init\n\n__all__ = ['init']\n")
    for _, name, environment, command in _ENGINES:
        for server, module, folder in (
            (f"{name}_of_one", command, rig.write(f"{name}_single")),
            (f"{name}_of_many", "nemoguardrails", rig.folder),
        ):
            arguments = ["-m", module, "server", "--port={port}", "--disable-chat-ui", f"--config={folder}"]
            rig.servers.start(server, arguments, health="/v1/rails/configs", **environment)


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
        try:
            parts = [chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices]
        except APIError as error:
            return seen_in_stream(error.message)
    return seen_in_stream("".join(parts))


async def check(address: str, text: str, *, config: str) -> Seen:
    """Ask for the verdict alone."""
    body: dict[str, Any] = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}
    async with httpx.AsyncClient(timeout=120) as http:
        reply = await http.post(f"{address}/v1/checks", json=body | {"guardrails": {"config_id": config}})
    assert reply.status_code == 200, reply.text
    return seen_in_check(reply.json())


async def single(rig: Rig, *, name: str) -> AsyncIterator[Ask]:
    """A server of one configuration."""
    address = await asyncio.to_thread(rig.servers.address, f"{name}_of_one")
    yield lambda text: completion(address, text, config=f"{name}_single")


async def several(rig: Rig, *, name: str) -> AsyncIterator[Ask]:
    """A server of several configurations, of which each message asks for another."""
    address = await asyncio.to_thread(rig.servers.address, f"{name}_of_many")
    configs = itertools.cycle([rig.write(f"{name}_many_{i}").name for i in range(3)])
    yield lambda text: completion(address, text, config=next(configs))


async def models(rig: Rig, *, name: str) -> AsyncIterator[Ask]:
    """A main LLM that requests choose."""
    address = await asyncio.to_thread(rig.servers.address, f"{name}_of_many")
    config = rig.write(f"{name}_models").name
    names = itertools.cycle(["gpt-4o-mini", "gpt-4o", "gpt-4.1"])

    async def ask(text: str) -> Seen:
        model = next(names)
        seen = await completion(address, text, config=config, model=model)
        assert seen is not Seen.ANSWER or rig.judge.answered_models[-1] == model
        return seen

    yield ask


async def streams(rig: Rig, *, name: str) -> AsyncIterator[Ask]:
    """Chat completions in chunks."""
    address = await asyncio.to_thread(rig.servers.address, f"{name}_of_many")
    config = rig.write(f"{name}_streams").name
    yield lambda text: streamed_completion(address, text, config=config)


async def checks(rig: Rig, *, name: str) -> AsyncIterator[Ask]:
    """The route that answers with a verdict."""
    address = await asyncio.to_thread(rig.servers.address, f"{name}_of_many")
    config = rig.write(f"{name}_checks").name
    yield lambda text: check(address, text, config=config)


for engine, name, _, command in _ENGINES:
    program = command if command == "nemoguardrails" else f"python -m {command}"
    entry_point(f"`{program} server`, one configuration", engine)(partial(single, name=name))
    entry_point("`nemoguardrails server`, several configurations", engine)(partial(several, name=name))
    entry_point("... a main LLM for each request", engine)(partial(models, name=name))
    entry_point("... `stream: true`", engine)(partial(streams, name=name))
    entry_point("... `/v1/checks`", engine, main_llm=MainLLM.NEVER, allowed=Seen.PASSED)(partial(checks, name=name))
