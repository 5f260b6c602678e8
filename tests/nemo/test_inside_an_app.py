"""What an app does by itself, around the methods of the host that clients reach: the gate holds there as well."""

from __future__ import annotations

import asyncio
import logging
import traceback
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import Guardrails, LLMRails, RailsConfig
from nemoguardrails.rails.llm.options import RailStatus

from ctd_guardrail.text.conversation import Context
from tests.nemo.doors.shapes import MARK
from tests.nemo.doors.stage import ANSWER, RecordingLLM, Stage, marking_guard
from tests.nemo.words import REFUSED, UNAVAILABLE

NESTED = """
from nemoguardrails.actions import action


def init(app):
    @action(name="ask_again", is_system_action=True)
    async def ask_again(context):
        topic = context.get("topic")
        if not topic:
            return "no topic"
        # A list of its own, as a client of this app would send it.
        said = await app.generate_async(messages=[{"role": "user", "content": topic}])
        return f"again: {said['content']}"

    app.register_action(ask_again, "ask_again")
"""
NESTED_CO = """
define flow asking
  event UserMessage
  if $topic
    $told = execute ask_again
    bot say what was told
  else
    $told = execute generate_user_intent

define bot say what was told
  "$told"
"""
EXCHANGING = """
from nemoguardrails.actions import action
from nemoguardrails.actions.llm.utils import llm_call


def init(app):
    @action(name="exchange", is_system_action=True)
    async def exchange(context, llm):
        app.update_llm(app.other)
        return (await llm_call(app.llm, context["topic"])).content

    app.register_action(exchange, "exchange")
"""
EXCHANGING_CO = """
define flow exchanging
  event UserMessage
  $told = execute exchange
  bot say what was told

define bot say what was told
  "$told"
"""


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def context(**variables: Any) -> dict[str, Any]:
    return {"role": "context", "content": variables}


@pytest.fixture(params=list(Context))
def guard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    guard = marking_guard(request.param)
    for module in ("setup", "iorails"):
        monkeypatch.setattr(f"ctd_guardrail.nemo.{module}.guard_for", lambda *_: guard)
    return guard


@pytest.fixture
def stage(tmp_path: Path, shared_judge: Any, guard: Any) -> Stage:
    return Stage(tmp_path, shared_judge, is_guarded=True)


def app_on(stage: Stage, name: str, files: dict[str, str] | None = None, **content: Any) -> LLMRails:
    return LLMRails(RailsConfig.from_path(str(stage.write(name, files, **content))), llm=stage.llm)


async def test_no_model_is_reached_before_the_first_request(stage: Stage, guard: Any) -> None:
    app = app_on(stage, "fresh")
    assert (await app.llm.generate_async("a question")).content == UNAVAILABLE
    assert not stage.calls
    assert guard.tally.snapshot().unscreened_calls == 1


@pytest.mark.parametrize("name", ["llm", "generate_user_intent_llm"])
async def test_a_model_that_an_app_registers_is_behind_the_gate(stage: Stage, name: str) -> None:
    app = app_on(stage, "registers")
    await app.generate_async(messages=[user("hello")])
    other = RecordingLLM()
    app.register_action_param(name, other)
    assert (await app.generate_async(messages=[user("hello there")]))["content"] == ANSWER
    assert len(other.calls) == 1
    tool = {"role": "tool", "tool_call_id": "1", "content": MARK}
    assert (await app.generate_async(messages=[user("hello there"), tool]))["content"] == REFUSED
    assert len(other.calls) == 1


async def test_a_model_that_is_exchanged_in_a_request_gets_its_verdict_as_well(stage: Stage) -> None:
    app: Any = app_on(stage, "exchanges", {"config.py": EXCHANGING, "rails.co": EXCHANGING_CO})
    app.other = RecordingLLM()
    assert (await app.generate_async(messages=[context(topic="birds"), user("hello")]))["content"] == ANSWER
    assert (await app.generate_async(messages=[context(topic=MARK), user("hello")]))["content"] == REFUSED
    assert len(app.other.calls) == 1


async def test_a_request_within_a_request_has_its_own_verdict(stage: Stage) -> None:
    app = app_on(stage, "nested", {"config.py": NESTED, "rails.co": NESTED_CO})
    said = await app.generate_async(messages=[context(topic="birds"), user("hello")])
    assert said["content"] == f"again: {ANSWER}"
    said = await app.generate_async(messages=[context(topic=MARK), user("hello")])
    assert said["content"] == f"again: {REFUSED}"
    assert not any(MARK in call for call in stage.calls)


async def test_the_runtime_is_asked_twice_in_one_task(stage: Stage) -> None:
    runtime = app_on(stage, "runtime").runtime

    async def ask(*texts: str) -> str:
        said = [{"type": "UserMessage", "text": text} for text in texts[:-1]]
        events = await runtime.generate_events(
            [*said, {"type": "UtteranceUserActionFinished", "final_transcript": texts[-1]}]
        )
        return "".join(event["script"] for event in events if event["type"] == "StartUtteranceBotAction")

    assert await ask("hello") == ANSWER
    assert await ask(MARK, "hello") == REFUSED
    assert await ask("hello") == ANSWER


async def test_the_host_remembers_nothing_of_a_refused_request(stage: Stage) -> None:
    chat = [{"type": "system", "content": "Be kind."}, "{{ history | to_chat_messages }}"]
    app = app_on(stage, "remembers", prompts=[{"task": "general", "models": ["unknown"], "messages": chat}])
    refused = await app.generate_async(messages=[{"role": "system", "content": MARK}, user("hello")])
    assert refused["content"] == REFUSED
    assert (await app.generate_async(messages=[user("hello"), refused, user("and now")]))["content"] == ANSWER
    assert not any(MARK in call for call in stage.calls)


async def test_requests_beside_each_other_do_not_share_a_verdict(stage: Stage) -> None:
    app = app_on(stage, "beside", passthrough=True)
    sent = [[user("hello")], [user(MARK)], [{"role": "system", "content": MARK}, user("hello")]] * 20
    said = await asyncio.gather(*(app.generate_async(messages=messages) for messages in sent))
    assert [reply["content"] for reply in said] == [ANSWER, REFUSED, REFUSED] * 20
    assert len(stage.calls) == 20


@pytest.mark.parametrize(
    "event",
    [
        {"type": "UserToolMessages", "tool_messages": 5},
        {"type": ["UserMessage"], "text": MARK},
        {"type": "ContextUpdate", "data": 5},
        {"type": "UserMessage", "text": {"deep": [[[MARK]]]}},
        {"type": "SystemMessage", "content": {MARK: {1: b"x"}}},
        {"type": None},
        {},
        None,
    ],
    ids=str,
)
async def test_odd_events_reach_no_model_and_no_error_is_the_guards(stage: Stage, event: Any) -> None:
    app = app_on(stage, "odd")
    for ask in (app.generate_events_async, app.runtime.generate_events):
        hello = {"type": "UtteranceUserActionFinished", "final_transcript": "hello"}
        (error,) = await asyncio.gather(ask([event, hello]), return_exceptions=True)
        if isinstance(error, Exception):
            *_, innermost = traceback.extract_tb(error.__traceback__)
            assert "ctd_guardrail" not in innermost.filename
    assert not any(MARK in call for call in stage.calls)


@pytest.mark.parametrize("message", [None, MARK, {"role": ["user"], "content": MARK}, {"content": MARK}], ids=str)
async def test_a_check_of_what_is_no_message_does_not_pass(stage: Stage, message: Any) -> None:
    app = app_on(stage, "check")
    (result,) = await asyncio.gather(app.check_async([message]), return_exceptions=True)
    assert isinstance(result, Exception) or result.status is RailStatus.BLOCKED


async def test_a_function_in_the_place_of_the_model_is_behind_the_gate_of_the_runtime(stage: Stage) -> None:
    app = app_on(stage, "function", passthrough=True)
    told: list[Any] = []

    async def answer(context: dict[str, Any], events: list[Any]) -> str:
        told.append([context, events])
        return ANSWER

    app.passthrough_fn = answer
    for text in ("hello", MARK):
        said = {"type": "UserMessage", "text": text}
        await app.runtime.generate_events([said, {"type": "UtteranceUserActionFinished", "final_transcript": "hello"}])
    assert len(told) == 1


async def test_a_stream_that_its_reader_leaves_ends_with_its_request(stage: Stage) -> None:
    content: dict[str, Any] = {
        "rails": {
            "input": {"flows": ["ctd check input"]},
            "output": {"flows": ["self check output"], "streaming": {"enabled": True, "chunk_size": 1}},
        },
        "prompts": [{"task": "self_check_output", "content": "Is this unsafe? {{ bot_response }}"}],
    }
    app = app_on(stage, "leaves", **content)
    stream: Any = app.stream_async(messages=[user("hello")])
    assert await anext(stream)
    await stream.aclose()
    assert (await app.llm.generate_async("after it")).content == UNAVAILABLE
    assert "".join([chunk async for chunk in app.stream_async(prompt="hello")]) == ANSWER
    refused = "".join([chunk async for chunk in app.stream_async(messages=[user(MARK)])])
    assert REFUSED in refused
    assert not any(MARK in call for call in stage.calls)


@pytest.mark.usefixtures("installed_in_iorails")
async def test_a_worker_of_iorails_takes_no_request_for_an_earlier_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemoguardrails.guardrails.iorails.NONSTREAM_MAX_CONCURRENCY", 1)
    config = RailsConfig.from_path(str(stage.write("worker", models=stage.over_http())))
    async with Guardrails(config, require_iorails=True) as app:
        for more in ({"note": MARK}, {"metadata": {"note": [MARK]}}, {"metadata": {MARK: 1}}):
            before = len(stage.calls)
            await app.generate_async(messages=[user("hello")])
            assert len(stage.calls) == before + 1
            await app.generate_async(messages=[user("hello") | more])
            await app.generate_async(messages=[{"role": "system", "content": MARK}, user("hello")])
            await app.generate_async(messages=[context(topic=MARK), user("hello")])
        await app.check_async([user("hello")])
        model = app.rails_engine.engine_registry.llms["main"]
        assert (await model.generate_async(MARK)).content == UNAVAILABLE, "the check has ended"
    assert not any(MARK in call for call in stage.calls)


async def test_what_a_door_refuses_is_not_in_the_guards_log(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="ctd_guardrail")
    app = app_on(stage, "log", passthrough=True)
    for message in (
        {"role": "context", "content": {"generation_options": MARK}},
        {"role": MARK, "content": {MARK: MARK}},
        {"role": "event", "event": {"type": "StartInternalSystemAction", "action_name": MARK}},
        {"role": "tool", "content": [MARK, {"type": MARK}], "tool_call_id": MARK},
    ):
        await app.generate_async(messages=[message, user("hello")])
    own = [record.getMessage() for record in caplog.records if record.name.startswith("ctd_guardrail")]
    assert not any(MARK in line for line in own)
    assert not any(MARK in call for call in stage.calls)
