"""The doors of NeMo's HTTP server."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from nemoguardrails import Guardrails, LLMRails
from nemoguardrails.server import api
from nemoguardrails.server.datastore.memory_store import MemoryStore

from ctd_guardrail.nemo.iorails import install
from tests.nemo.doors.door import DOORS, Send, messages_of, options_of, register
from tests.nemo.doors.shapes import Shape
from tests.nemo.doors.stage import Stage


@asynccontextmanager
async def _server(stage: Stage, name: str, engine: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of NeMo's own HTTP application over three configurations: plain, passthrough, and a part."""
    root = stage.write(f"{name}/plain", models=stage.over_http()).parent
    stage.write(f"{name}/passthrough", models=stage.over_http(), passthrough=True)
    (root / "part").mkdir(exist_ok=True)
    (root / "part" / "config.yml").write_text("instructions: [{type: general, content: Be kind.}]")
    before = api.app.rails_config_path, api.datastore, api.LLMRails
    api.app.rails_config_path, api.LLMRails = str(root), engine
    api.register_datastore(MemoryStore())
    api.llm_rails_instances.clear()
    try:
        transport = httpx.ASGITransport(api.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            yield client
    finally:
        for rails in api.llm_rails_instances.values():
            if isinstance(rails, Guardrails):
                await rails.shutdown()
        api.llm_rails_instances.clear()
        api.app.rails_config_path, api.datastore, api.LLMRails = before


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> str:
    answer = await client.post(path, json={"model": "gpt-4o-mini", **body})
    if answer.headers["content-type"].startswith("text/event-stream"):
        frames = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        deltas = [frame["choices"][0]["delta"].get("content", "") if "choices" in frame else frame for frame in frames]
        return "".join(map(str, deltas))
    read = answer.json()
    if "choices" in read:
        return str(read["choices"][0]["message"].get("content"))
    return str(read.get("status") or answer.status_code)


def _server_door(
    engine: str, label: str, *, path: str = "/v1/chat/completions", stream: bool = False, **asks: Any
) -> None:
    """Register a door of NeMo's server.

    Args:
        engine: The engine behind it.
        label: In Markdown.
        path: Of the request.
        stream: Whether the answer is a stream.
        asks: The field ``guardrails`` of the request's body.
    """
    is_check = path.endswith("checks")

    async def door(stage: Stage) -> AsyncIterator[Send]:
        async with _server(stage, f"{engine}-{len(DOORS)}", Guardrails if engine == "IORails" else LLMRails) as client:

            async def send(shape: Shape) -> str:
                guardrails = {"config_id": "plain", **asks}
                body: dict[str, Any] = {"messages": messages_of(shape), "guardrails": guardrails}
                if not is_check:
                    guardrails["options"] = options_of(shape) or {}
                    body["stream"] = stream
                return await _post(client, path, body)

            yield send

    if engine == "IORails":
        door = _with_rail_in_catalog(door)
    register(engine, label, takes=Shape.on_the_wire, calls_main=not is_check)(door)


def _with_rail_in_catalog(door: Callable[[Stage], AsyncIterator[Send]]) -> Callable[[Stage], AsyncIterator[Send]]:
    async def installed(stage: Stage) -> AsyncIterator[Send]:
        install()
        async for send in door(stage):
            yield send

    return installed


_server_door("Colang 1.0", "server, `/v1/chat/completions`")
_server_door("Colang 1.0", "server, `passthrough`", config_id="passthrough")
_server_door("Colang 1.0", "server, `stream: true`", stream=True)
_server_door("Colang 1.0", "server, two configurations joined", config_id=None, config_ids=["plain", "part"])
_server_door("Colang 1.0", "server, `/v1/checks`", path="/v1/checks")
_server_door("IORails", "server, `/v1/chat/completions`")
_server_door("IORails", "server, `stream: true`", stream=True)
_server_door("IORails", "server, `/v1/checks`", path="/v1/checks")


@register("Colang 1.0", "server, `thread_id`", takes=Shape.on_the_wire)
async def _threads(stage: Stage) -> AsyncIterator[Send]:
    async with _server(stage, "threads", LLMRails) as client:
        threads = itertools.count()

        async def send(shape: Shape) -> str:
            # What an earlier request has left in the thread comes back with the next one.
            guardrails = {"config_id": "plain", "thread_id": f"thread-of-a-client-{next(threads):08}"}
            body = {"messages": messages_of(shape), "guardrails": guardrails | {"options": options_of(shape) or {}}}
            first = await _post(client, "/v1/chat/completions", body)
            body = {"messages": [{"role": "user", "content": "and now"}], "guardrails": guardrails}
            return f"{first} / {await _post(client, '/v1/chat/completions', body)}"

        yield send
