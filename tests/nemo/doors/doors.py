"""Every door of NeMo Guardrails that takes a client's request, as a function that sends one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from nemoguardrails import Guardrails, LLMRails, RailsConfig

from ctd_guardrail.nemo.iorails import install
from tests.nemo.doors import servers  # noqa: F401  # it registers its doors
from tests.nemo.doors.configurations import (
    ACTION_CO,
    ACTION_PY,
    COLANG_2,
    DIALOG_CO,
    DIALOG_PY,
    ESCAPING_PROMPT,
    MATCHES,
    PROMPT,
    SAYS,
)
from tests.nemo.doors.door import (
    DOORS,
    INPUT,
    Door,
    Send,
    app_on,
    checking,
    generating,
    messages_of,
    options_of,
    register,
    said_in,
    streaming,
)
from tests.nemo.doors.shapes import Shape
from tests.nemo.doors.stage import Stage

__all__ = ["DOORS", "Door"]


def _colang_1(name: str, label: str, files: dict[str, str] | None = None, **content: Any) -> None:
    async def door(stage: Stage) -> AsyncIterator[Send]:
        yield generating(app_on(stage, name, files, **content))

    register("Colang 1.0", label)(door)


_DIALOG: Final = {"core": {"embedding_search_provider": {"name": "first"}}}
_FILES: Final = {"config.py": DIALOG_PY, "rails.co": DIALOG_CO}

_colang_1("plain", "`generate_async`")
_colang_1("passthrough", "`generate_async`, `passthrough`", passthrough=True)
_colang_1("parallel", "`generate_async`, rails in parallel", rails={"input": {"parallel": True, **INPUT}})
_colang_1("exceptions", "`generate_async`, `enable_rails_exceptions`", enable_rails_exceptions=True)
_colang_1("dialog", "`generate_async`, dialog rails", _FILES, **_DIALOG)
_colang_1(
    "single",
    "`generate_async`, dialog rails in a single call",
    _FILES,
    rails={"input": INPUT, "dialog": {"single_call": {"enabled": True}}},
    **_DIALOG,
)
_FILES_OF_ACTION: Final = {"actions.py": ACTION_PY, "rails.co": ACTION_CO}
_colang_1(
    "action",
    "`generate_async`, an app's own action that asks the main LLM",
    _FILES_OF_ACTION,
    prompts=[{"task": "tell_news", "content": PROMPT}],
)
_colang_1(
    "escapes",
    "`generate_async`, an app's own action whose prompt escapes and cuts",
    _FILES_OF_ACTION,
    prompts=[{"task": "tell_news", "content": ESCAPING_PROMPT}],
)
_colang_1(
    "self_check",
    "`generate_async`, behind a rail that asks the main LLM",
    rails={"input": {"flows": ["self check input", "ctd check input"]}},
    prompts=[{"task": "self_check_input", "content": "Is this unsafe? {{ user_input }}"}],
)
_SELF_CHECK_OUTPUT: Final = {
    "rails": {"input": INPUT, "output": {"flows": ["self check output"], "streaming": {"enabled": True}}},
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


@register("Colang 1.0", "`stream_async`, before a rail that asks the main LLM")
async def _stream_check_output(stage: Stage) -> AsyncIterator[Send]:
    yield streaming(app_on(stage, "stream_check_output", **_SELF_CHECK_OUTPUT))


@register("Colang 1.0", "a model that the app has registered for one action")
async def _model_of_an_action(stage: Stage) -> AsyncIterator[Send]:
    rails = app_on(stage, "model_of_an_action")
    rails.register_action_param("generate_user_intent_llm", stage.llm)
    yield generating(rails)


@register("Colang 1.0", "`generate_async`, again with what the host remembers")
async def _remembering(stage: Stage) -> AsyncIterator[Send]:
    chat = [{"type": "system", "content": "{{ general_instructions }}"}, "{{ history | to_chat_messages }}"]
    rails = app_on(stage, "remembering", prompts=[{"task": "general", "models": ["unknown"], "messages": chat}])

    async def send(shape: Shape) -> str:
        sent = messages_of(shape)
        first = said_in(await rails.generate_async(messages=sent))
        # By its key, the host's memory of a conversation holds the words of users and of the assistant alone.
        kept = [message for message in messages_of(shape) if message["role"] not in {"system", "developer", "tool"}]
        again = [*kept, {"role": "assistant", "content": first}, {"role": "user", "content": "and now"}]
        return f"{first} / {said_in(await rails.generate_async(messages=again))}"

    yield send


@register("Colang 1.0", "`runtime.generate_events`")
async def _runtime(stage: Stage) -> AsyncIterator[Send]:
    rails = app_on(stage, "runtime")

    async def send(shape: Shape) -> str:
        events = await rails.runtime.generate_events(rails._get_events_for_messages(messages_of(shape), None))
        return "\n".join(event["script"] for event in events if event["type"] == "StartUtteranceBotAction")

    yield send


@register("Colang 1.0", "`stream_async`")
async def _stream(stage: Stage) -> AsyncIterator[Send]:
    yield streaming(app_on(stage, "stream"))


@register("Colang 1.0", "`stream_async`, `passthrough`")
async def _stream_passthrough(stage: Stage) -> AsyncIterator[Send]:
    yield streaming(app_on(stage, "stream_passthrough", passthrough=True))


@register("Colang 1.0", "`generate_async(prompt=...)`")
async def _prompt(stage: Stage) -> AsyncIterator[Send]:
    rails = app_on(stage, "prompt")

    async def send(shape: Shape) -> str:
        prompt = "\n".join(str(message.get("content")) for message in shape.messages)
        return said_in(await rails.generate_async(prompt=prompt, options=options_of(shape)))

    yield send


@register("Colang 1.0", "`generate_async(state=...)`")
async def _state(stage: Stage) -> AsyncIterator[Send]:
    rails = app_on(stage, "state")

    async def send(shape: Shape) -> str:
        # A state is a list of events that the client gives back. The host itself makes them of the messages.
        state = {"events": rails._get_events_for_messages(messages_of(shape), None)}
        hello = [{"role": "user", "content": "hello"}]
        return said_in(await rails.generate_async(messages=hello, options=options_of(shape), state=state))

    yield send


@register("Colang 1.0", "`generate_events_async`")
async def _events(stage: Stage) -> AsyncIterator[Send]:
    rails = app_on(stage, "events")

    async def send(shape: Shape) -> str:
        events = await rails.generate_events_async(rails._get_events_for_messages(messages_of(shape), None))
        return "\n".join(event["script"] for event in events if event["type"] == "StartUtteranceBotAction")

    yield send


@register("Colang 1.0", "an app's own function in the place of the main LLM")
async def _function(stage: Stage) -> AsyncIterator[Send]:
    rails = app_on(stage, "function", passthrough=True)

    async def answer(context: dict[str, Any], events: list[Any]) -> str:
        said = [event for event in events if event["type"] in {"UserMessage", "SystemMessage"}]
        return (await stage.llm.generate_async([{"role": "user", "content": json.dumps(said)}])).content

    rails.passthrough_fn = answer
    yield generating(rails)


@register("Colang 1.0", "`check_async`", calls_main=False)
async def _check(stage: Stage) -> AsyncIterator[Send]:
    yield checking(app_on(stage, "check"))


def _colang_2(stage: Stage, name: str, flow: tuple[str, str] = SAYS) -> LLMRails:
    imports, rails = (
        "import guardrails\nimport ctd_guardrail.nemo",
        "\nflow input rails $input_text\n  ctd check input",
    )
    if not stage.is_guarded:
        imports = rails = ""
    main = COLANG_2.format(imports=imports, rails=rails, waits=flow[0], text=flow[1])
    return app_on(stage, name, {"main.co": main}, colang_version="2.x", import_paths=[], rails={})


@register("Colang 2.x", "`generate_async`")
async def _colang_2_generate(stage: Stage) -> AsyncIterator[Send]:
    yield generating(_colang_2(stage, "colang2"))


@register("Colang 2.x", "`generate_async`, a flow that no input rail of the host covers")
async def _colang_2_matching(stage: Stage) -> AsyncIterator[Send]:
    yield generating(_colang_2(stage, "colang2_matching", MATCHES))


@register("Colang 2.x", "`process_events_async`")
async def _colang_2_events(stage: Stage) -> AsyncIterator[Send]:
    rails = _colang_2(stage, "colang2_events")

    async def send(shape: Shape) -> str:
        events = rails._get_events_for_messages(messages_of(shape), None)
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
        content = content | {"rails": content["rails"] | {"input": INPUT | rails}}
        async with _iorails(stage, name, **content) as app:
            yield ask(app)

    register("IORails", label, calls_main=calls_main)(door)


_iorails_door("plain", "`generate_async`", generating)
_iorails_door("parallel", "`generate_async`, rails in parallel", generating, parallel=True)
_iorails_door("speculative", "`generate_async`, `speculative_generation`", generating, speculative_generation=True)
_iorails_door("stream", "`stream_async`", streaming)
_iorails_door("check", "`check_async`", checking, calls_main=False)
for _name, _ask, _rails in (
    ("`generate_async`", generating, {}),
    ("`generate_async`, `speculative_generation`", generating, {"speculative_generation": True}),
    ("`stream_async`", streaming, {}),
):
    _iorails_door(
        f"check_output_{len(DOORS)}",
        f"{_name}, before a rail that asks the main LLM",
        _ask,
        checks_output=True,
        **_rails,
    )
