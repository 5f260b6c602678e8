"""Every door of NeMo Guardrails that takes a client's request, as a function that sends one."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
from nemoguardrails import Guardrails, LLMRails, RailsConfig
from nemoguardrails.server import api
from nemoguardrails.server.datastore.memory_store import MemoryStore

from ctd_guardrail.nemo.iorails import install
from doors.shapes import Shape
from doors.stage import Stage

__all__ = ["DOORS", "Door", "Send"]

Send = Callable[[Shape], Awaitable[str]]
"""Sends a request, and returns all that the client reads."""


@dataclass(frozen=True, slots=True)
class Door:
    """One way in.

    Attributes:
        engine: The engine of NeMo Guardrails behind it.
        name: In Markdown.
        open: Builds the app, and yields the function that sends.
        takes: Whether a shape can be sent through it at all.
        calls_main: Whether the main LLM answers there.
    """

    engine: str
    name: str
    open: Callable[[Stage], AbstractAsyncContextManager[Send]]
    takes: Callable[[Shape], bool]
    calls_main: bool


DOORS: Final[list[Door]] = []

# Dialog rails look for the nearest example of an utterance. This index needs no model: all are equally near.
_DIALOG_PY: Final = """
from nemoguardrails.embeddings.index import EmbeddingsIndex


class First(EmbeddingsIndex):
    def __init__(self, **_):
        self.items = []

    async def add_items(self, items):
        self.items += items

    async def search(self, text, max_results, threshold=None):
        return self.items[:max_results]


def init(app):
    app.register_embedding_search_provider("first", First)
"""
_DIALOG_CO: Final = """
define user greet
  "hello"

define user ask news
  "what is new"

define flow greeting
  user greet
  bot greet back

define flow news
  user ask news
  bot tell news about $topic
"""
# The input rails of Colang 2.x run for a flow that waits for `user said something`, and not for one that waits for the
# event itself.
_COLANG_2: Final = """
import core
{imports}

flow main
  activate answering

flow answering
  {waits}
  $answer = await PassthroughLLMAction(user_message={text})
  bot say $answer
{rails}
"""
_SAYS: Final = ("user said something as $said", "$said.transcript")
_MATCHES: Final = ("match UtteranceUserAction.Finished() as $said", "$said.final_transcript")
# An app's own action writes variables into a prompt, by the templates of the host, and asks the main LLM.
_ACTION_PY: Final = """
from nemoguardrails.actions import action
from nemoguardrails.actions.llm.utils import llm_call


@action(is_system_action=True)
async def tell_news(context, events, llm, llm_task_manager):
    prompt = llm_task_manager.render_task_prompt(task="tell_news", context=context, events=events)
    return (await llm_call(llm, prompt)).content
"""
_ACTION_CO: Final = """
define flow telling
  event UserMessage
  $told = execute tell_news
  bot say what was told

define bot say what was told
  "$told"
"""
_PROMPT: Final = (
    "The topic is {{ topic }}. Notes: {{ profile }}. Known: {{ relevant_chunks }}. {{ note }} {{ history | colang }}"
)
_ESCAPING_PROMPT: Final = (
    "{{ topic | default('') | tojson }} {{ profile | default('') | tojson }} {{ topic | default('') | truncate(15) }} "
    "{{ profile | default('') | string | urlencode }} {{ history | colang }}"
)


def _anything(_: Shape) -> bool:
    return True


def _door(
    engine: str, name: str, *, takes: Callable[[Shape], bool] = _anything, calls_main: bool = True
) -> Callable[[Callable[[Stage], AsyncIterator[Send]]], None]:
    def register(function: Callable[[Stage], AsyncIterator[Send]]) -> None:
        DOORS.append(Door(engine, name, asynccontextmanager(function), takes, calls_main))

    return register


def _app(stage: Stage, name: str, files: dict[str, str] | None = None, **content: Any) -> LLMRails:
    return LLMRails(RailsConfig.from_path(str(stage.write(name, files, **content))), llm=stage.llm)


def _options(shape: Shape) -> dict[str, Any] | None:
    return copy.deepcopy(shape.options) or None


def _messages(shape: Shape) -> list[dict[str, Any]]:
    return copy.deepcopy(shape.messages)


def _generating(rails: Any) -> Send:
    async def send(shape: Shape) -> str:
        return _said(await rails.generate_async(messages=_messages(shape), options=_options(shape)))

    return send


def _streaming(rails: Any) -> Send:
    async def send(shape: Shape) -> str:
        chunks = rails.stream_async(messages=_messages(shape), options=_options(shape))
        return "".join([str(chunk) async for chunk in chunks])

    return send


def _checking(rails: Any) -> Send:
    async def send(shape: Shape) -> str:
        return str((await rails.check_async(_messages(shape))).status.value)

    return send


def _said(answer: Any) -> str:
    """Return what the client reads: the last message, without what differs from call to call."""
    message = answer.response[-1] if hasattr(answer, "response") else answer
    content = message["content"] if isinstance(message, dict) else message
    return str(content["type"]) if isinstance(content, dict) else str(content)


def _colang_1(name: str, label: str, files: dict[str, str] | None = None, **content: Any) -> None:
    async def door(stage: Stage) -> AsyncIterator[Send]:
        yield _generating(_app(stage, name, files, **content))

    _door("Colang 1.0", label)(door)


_INPUT: Final = {"flows": ["ctd check input"]}
_DIALOG: Final = {"core": {"embedding_search_provider": {"name": "first"}}}
_FILES: Final = {"config.py": _DIALOG_PY, "rails.co": _DIALOG_CO}

_colang_1("plain", "`generate_async`")
_colang_1("passthrough", "`generate_async`, `passthrough`", passthrough=True)
_colang_1("parallel", "`generate_async`, rails in parallel", rails={"input": {"parallel": True, **_INPUT}})
_colang_1("exceptions", "`generate_async`, `enable_rails_exceptions`", enable_rails_exceptions=True)
_colang_1("dialog", "`generate_async`, dialog rails", _FILES, **_DIALOG)
_colang_1(
    "single",
    "`generate_async`, dialog rails in a single call",
    _FILES,
    rails={"input": _INPUT, "dialog": {"single_call": {"enabled": True}}},
    **_DIALOG,
)
_FILES_OF_ACTION: Final = {"actions.py": _ACTION_PY, "rails.co": _ACTION_CO}
_colang_1(
    "action",
    "`generate_async`, an app's own action that asks the main LLM",
    _FILES_OF_ACTION,
    prompts=[{"task": "tell_news", "content": _PROMPT}],
)
_colang_1(
    "escapes",
    "`generate_async`, an app's own action whose prompt escapes and cuts",
    _FILES_OF_ACTION,
    prompts=[{"task": "tell_news", "content": _ESCAPING_PROMPT}],
)
_colang_1(
    "self_check",
    "`generate_async`, behind a rail that asks the main LLM",
    rails={"input": {"flows": ["self check input", "ctd check input"]}},
    prompts=[{"task": "self_check_input", "content": "Is this unsafe? {{ user_input }}"}],
)
_SELF_CHECK_OUTPUT: Final = {
    "rails": {"input": _INPUT, "output": {"flows": ["self check output"], "streaming": {"enabled": True}}},
    "prompts": [{"task": "self_check_output", "content": "Is this unsafe? {{ bot_response }} {{ user_input }}"}],
}
_colang_1("check_output", "`generate_async`, before a rail that asks the main LLM", **_SELF_CHECK_OUTPUT)
_MASK_PY: Final = """
from nemoguardrails.actions import action


@action(is_system_action=True)
async def mask(context):
    said = context.get("user_message")
    return said.replace("hello", "good day") if isinstance(said, str) else said
"""
_MASK_CO: Final = """
define subflow mask words
  $user_message = execute mask
"""
for _order in (["mask words", "ctd check input"], ["ctd check input", "mask words"]):
    _colang_1(
        f"mask_{_order[0][:3]}",
        f"`generate_async`, {'behind' if _order[0] == 'mask words' else 'before'} a rail that rewrites the message",
        {"actions.py": _MASK_PY, "rails.co": _MASK_CO},
        rails={"input": {"flows": _order}},
    )


@_door("Colang 1.0", "`stream_async`, before a rail that asks the main LLM")
async def _stream_check_output(stage: Stage) -> AsyncIterator[Send]:
    yield _streaming(_app(stage, "stream_check_output", **_SELF_CHECK_OUTPUT))


@_door("Colang 1.0", "a model that the app has registered for one action")
async def _model_of_an_action(stage: Stage) -> AsyncIterator[Send]:
    rails = _app(stage, "model_of_an_action")
    rails.register_action_param("generate_user_intent_llm", stage.llm)
    yield _generating(rails)


@_door("Colang 1.0", "`generate_async`, again with what the host remembers")
async def _remembering(stage: Stage) -> AsyncIterator[Send]:
    chat = [{"type": "system", "content": "{{ general_instructions }}"}, "{{ history | to_chat_messages }}"]
    rails = _app(stage, "remembering", prompts=[{"task": "general", "models": ["unknown"], "messages": chat}])

    async def send(shape: Shape) -> str:
        sent = _messages(shape)
        first = _said(await rails.generate_async(messages=sent))
        # By its key, the host's memory of a conversation holds the words of users and of the assistant alone.
        kept = [message for message in _messages(shape) if message["role"] not in {"system", "developer", "tool"}]
        again = [*kept, {"role": "assistant", "content": first}, {"role": "user", "content": "and now"}]
        return f"{first} / {_said(await rails.generate_async(messages=again))}"

    yield send


@_door("Colang 1.0", "`runtime.generate_events`")
async def _runtime(stage: Stage) -> AsyncIterator[Send]:
    rails = _app(stage, "runtime")

    async def send(shape: Shape) -> str:
        events = await rails.runtime.generate_events(rails._get_events_for_messages(_messages(shape), None))
        return "\n".join(event["script"] for event in events if event["type"] == "StartUtteranceBotAction")

    yield send


@_door("Colang 1.0", "`stream_async`")
async def _stream(stage: Stage) -> AsyncIterator[Send]:
    yield _streaming(_app(stage, "stream"))


@_door("Colang 1.0", "`stream_async`, `passthrough`")
async def _stream_passthrough(stage: Stage) -> AsyncIterator[Send]:
    yield _streaming(_app(stage, "stream_passthrough", passthrough=True))


@_door("Colang 1.0", "`generate_async(prompt=...)`")
async def _prompt(stage: Stage) -> AsyncIterator[Send]:
    rails = _app(stage, "prompt")

    async def send(shape: Shape) -> str:
        prompt = "\n".join(str(message.get("content")) for message in shape.messages)
        return _said(await rails.generate_async(prompt=prompt, options=_options(shape)))

    yield send


@_door("Colang 1.0", "`generate_async(state=...)`")
async def _state(stage: Stage) -> AsyncIterator[Send]:
    rails = _app(stage, "state")

    async def send(shape: Shape) -> str:
        # A state is a list of events that the client gives back. The host itself makes them of the messages.
        state = {"events": rails._get_events_for_messages(_messages(shape), None)}
        hello = [{"role": "user", "content": "hello"}]
        return _said(await rails.generate_async(messages=hello, options=_options(shape), state=state))

    yield send


@_door("Colang 1.0", "`generate_events_async`")
async def _events(stage: Stage) -> AsyncIterator[Send]:
    rails = _app(stage, "events")

    async def send(shape: Shape) -> str:
        events = await rails.generate_events_async(rails._get_events_for_messages(_messages(shape), None))
        return "\n".join(event["script"] for event in events if event["type"] == "StartUtteranceBotAction")

    yield send


@_door("Colang 1.0", "an app's own function in the place of the main LLM")
async def _function(stage: Stage) -> AsyncIterator[Send]:
    rails = _app(stage, "function", passthrough=True)

    async def answer(context: dict[str, Any], events: list[Any]) -> str:
        said = [event for event in events if event["type"] in {"UserMessage", "SystemMessage"}]
        return (await stage.llm.generate_async([{"role": "user", "content": json.dumps(said)}])).content

    rails.passthrough_fn = answer
    yield _generating(rails)


@_door("Colang 1.0", "`check_async`", calls_main=False)
async def _check(stage: Stage) -> AsyncIterator[Send]:
    yield _checking(_app(stage, "check"))


def _colang_2(stage: Stage, name: str, flow: tuple[str, str] = _SAYS) -> LLMRails:
    imports, rails = (
        "import guardrails\nimport ctd_guardrail.nemo",
        "\nflow input rails $input_text\n  ctd check input",
    )
    if not stage.is_guarded:
        imports = rails = ""
    main = _COLANG_2.format(imports=imports, rails=rails, waits=flow[0], text=flow[1])
    return _app(stage, name, {"main.co": main}, colang_version="2.x", import_paths=[], rails={})


@_door("Colang 2.x", "`generate_async`")
async def _colang_2_generate(stage: Stage) -> AsyncIterator[Send]:
    yield _generating(_colang_2(stage, "colang2"))


@_door("Colang 2.x", "`generate_async`, a flow that no input rail of the host covers")
async def _colang_2_matching(stage: Stage) -> AsyncIterator[Send]:
    yield _generating(_colang_2(stage, "colang2_matching", _MATCHES))


@_door("Colang 2.x", "`process_events_async`")
async def _colang_2_events(stage: Stage) -> AsyncIterator[Send]:
    rails = _colang_2(stage, "colang2_events")

    async def send(shape: Shape) -> str:
        events = rails._get_events_for_messages(_messages(shape), None)
        output, _ = await rails.process_events_async(events, None)
        return "\n".join(event["script"] for event in output if event["type"] == "StartUtteranceBotAction")

    yield send


def _iorails(stage: Stage, name: str, **content: Any) -> Guardrails:
    install()
    config = RailsConfig.from_path(str(stage.write(f"iorails_{name}", models=stage.over_http(), **content)))
    return Guardrails(config, require_iorails=True)


def _iorails_door(
    name: str,
    label: str,
    ask: Callable[[Any], Send],
    *,
    calls_main: bool = True,
    checks_output: bool = False,
    **rails: Any,
) -> None:
    async def door(stage: Stage) -> AsyncIterator[Send]:
        content: dict[str, Any] = _SELF_CHECK_OUTPUT if checks_output else {"rails": {}}
        content = content | {"rails": content["rails"] | {"input": _INPUT | rails}}
        async with _iorails(stage, name, **content) as app:
            yield ask(app)

    _door("IORails", label, calls_main=calls_main)(door)


_iorails_door("plain", "`generate_async`", _generating)
_iorails_door("parallel", "`generate_async`, rails in parallel", _generating, parallel=True)
_iorails_door("speculative", "`generate_async`, `speculative_generation`", _generating, speculative_generation=True)
_iorails_door("stream", "`stream_async`", _streaming)
_iorails_door("check", "`check_async`", _checking, calls_main=False)
for _name, _ask, _rails in (
    ("`generate_async`", _generating, {}),
    ("`generate_async`, `speculative_generation`", _generating, {"speculative_generation": True}),
    ("`stream_async`", _streaming, {}),
):
    _iorails_door(
        f"check_output_{len(DOORS)}",
        f"{_name}, before a rail that asks the main LLM",
        _ask,
        checks_output=True,
        **_rails,
    )


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
                body: dict[str, Any] = {"messages": _messages(shape), "guardrails": guardrails}
                if not is_check:
                    guardrails["options"] = _options(shape) or {}
                    body["stream"] = stream
                return await _post(client, path, body)

            yield send

    if engine == "IORails":
        door = _with_rail_in_catalog(door)
    _door(engine, label, takes=Shape.on_the_wire, calls_main=not is_check)(door)


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


@_door("Colang 1.0", "server, `thread_id`", takes=Shape.on_the_wire)
async def _threads(stage: Stage) -> AsyncIterator[Send]:
    async with _server(stage, "threads", LLMRails) as client:
        threads = itertools.count()

        async def send(shape: Shape) -> str:
            # What an earlier request has left in the thread comes back with the next one.
            guardrails = {"config_id": "plain", "thread_id": f"thread-of-a-client-{next(threads):08}"}
            body = {"messages": _messages(shape), "guardrails": guardrails | {"options": _options(shape) or {}}}
            first = await _post(client, "/v1/chat/completions", body)
            body = {"messages": [{"role": "user", "content": "and now"}], "guardrails": guardrails}
            return f"{first} / {await _post(client, '/v1/chat/completions', body)}"

        yield send
