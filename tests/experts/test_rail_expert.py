import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome
from nemoguardrails.exceptions import LLMClientError
from nemoguardrails.llm.taskmanager import LLMTaskManager
from nemoguardrails.logging.processing_log import processing_log_var
from nemoguardrails.testing import FakeLLMModel

from ctd_guardrail.config.experts import RailExpertConfig
from ctd_guardrail.errors import ConfigError, ExpertTimeoutError, ExpertUnavailableError, ExpertVerdictError
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.experts.protocol import Expert
from ctd_guardrail.experts.rail.expert import RailCollaborators, RailExpert
from ctd_guardrail.text.conversation import Conversation, Message

FLOW = "content safety check input $model=content_safety"
SELF_CHECK = "self check input"
CONVERSATION = Conversation.from_text("canary-text")
CONFIG = """
models:
  - type: content_safety
    engine: openai
    model: guard-8b
    parameters: {base_url: "http://127.0.0.1:1/v1", api_key: canary-key}
  - type: main
    engine: openai
    model: main-70b
prompts:
  - task: content_safety_check_input $model=content_safety
    content: "Judge this: {{ user_input }}"
    output_parser: nemoguard_parse_prompt_safety
    max_tokens: 50
  - task: self_check_input
    content: "Should this be blocked? {{ user_input }}"
"""
SAFE = '{"User Safety": "safe"}'
UNSAFE = '{"User Safety": "unsafe", "Safety Categories": "Violence"}'
USAGE = [{"prompt_tokens": 40, "completion_tokens": 2, "total_tokens": 42}]


class Stuck(FakeLLMModel):
    """Never answers."""

    async def generate_async(self, prompt: Any, *, stop: Any = None, **kwargs: Any) -> Any:
        del prompt, stop, kwargs
        await asyncio.sleep(3600)


class Cancelled(FakeLLMModel):
    """Is cancelled from inside."""

    async def generate_async(self, prompt: Any, *, stop: Any = None, **kwargs: Any) -> Any:
        raise asyncio.CancelledError(prompt, stop, kwargs)


class Recording(FakeLLMModel):
    """Remembers its prompts."""

    prompts: list[Any]

    async def generate_async(self, prompt: Any, *, stop: Any = None, **kwargs: Any) -> Any:
        self.prompts = [*getattr(self, "prompts", []), prompt]
        return await super().generate_async(prompt, stop=stop, **kwargs)


def _collaborators(llm: Any = None, *, config: str = CONFIG) -> RailCollaborators:
    rails_config = RailsConfig.from_content(yaml_content=config)
    llms = {model.type: llm for model in rails_config.models}
    return RailCollaborators(rails_config, lambda: llms, LLMTaskManager(rails_config))


def _expert(llm: Any = None, *, flow: str = FLOW, config: str = CONFIG, timeout_s: float = 10) -> BoundedExpert:
    section = RailExpertConfig(type="rail", flow=flow, timeout_s=timeout_s)
    return build_expert(section, rail_collaborators=_collaborators(llm, config=config))


@pytest.mark.parametrize(("answer", "p_unsafe"), [(SAFE, 0.0), (UNSAFE, 1.0)])
async def test_blocked_is_one_and_allowed_is_zero(answer: str, p_unsafe: float) -> None:
    llm = FakeLLMModel(responses=[answer], token_usage=USAGE, should_return_token_usage=True)
    score = await _expert(llm).score(CONVERSATION)
    assert (score.p_unsafe, score.attempts, score.tokens) == (p_unsafe, 1, 42)


async def test_tokens_are_unknown_where_the_model_does_not_say() -> None:
    assert (await _expert(FakeLLMModel(responses=[SAFE])).score(CONVERSATION)).tokens is None


@pytest.mark.parametrize(("answer", "p_unsafe"), [("No", 0.0), ("Yes", 1.0)])
async def test_another_rail_works_by_its_name(answer: str, p_unsafe: float) -> None:
    score = await _expert(FakeLLMModel(responses=[answer]), flow=SELF_CHECK).score(CONVERSATION)
    assert score.p_unsafe == p_unsafe


async def test_every_turn_of_a_conversation_reaches_the_rail() -> None:
    llm = Recording(responses=[SAFE])
    turns = (Message("user", "first"), Message("assistant", "second"), Message("user", "third"))
    await _expert(llm).score(Conversation(turns))
    assert llm.prompts == ["Judge this: user: first\nassistant: second\nuser: third"]


async def test_template_syntax_in_the_text_stays_text() -> None:
    llm = Recording(responses=[SAFE])
    await _expert(llm).score(Conversation.from_text("{{ 7 * 7 }} {% raw %} {0} %s"))
    assert llm.prompts == ["Judge this: {{ 7 * 7 }} {% raw %} {0} %s"]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("canary-text"), "failed"),
        (LLMClientError(429, "canary-text"), "HTTP 429"),
        (LLMClientError(0, "canary-text"), "failed"),
        (TimeoutError("canary-text"), "failed"),
    ],
)
async def test_a_model_that_raises_is_unavailable(
    error: Exception, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG, logger="ctd_guardrail"),
        pytest.raises(ExpertUnavailableError, match=cause) as raised,
    ):
        await _expert(FakeLLMModel(llm_exception=error)).score(CONVERSATION)
    assert "canary" not in str(raised.value)
    assert not [record for record in caplog.records if record.name.startswith("ctd_guardrail")]


@pytest.mark.parametrize("answer", ["canary-text", "", "{}", '{"User Safety": null}', "safe"])
async def test_an_answer_without_verdict_is_a_bad_verdict(answer: str) -> None:
    with pytest.raises(ExpertVerdictError) as raised:
        await _expert(FakeLLMModel(responses=[answer])).score(CONVERSATION)
    assert "canary" not in str(raised.value)


async def test_a_model_that_hangs_is_a_timeout() -> None:
    with pytest.raises(ExpertTimeoutError):
        await _expert(Stuck(responses=[]), timeout_s=0.05).score(CONVERSATION)


async def test_a_cancellation_from_inside_is_unavailable() -> None:
    with pytest.raises(ExpertUnavailableError, match="cancelled its own call"):
        await _expert(Cancelled(responses=[])).score(CONVERSATION)


async def test_the_callers_cancellation_passes() -> None:
    task = asyncio.create_task(_expert(Stuck(responses=[])).score(CONVERSATION))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_model_that_the_host_never_built_is_unavailable() -> None:
    collaborators = _collaborators()
    empty = RailCollaborators(collaborators.config, dict, collaborators.llm_task_manager)
    expert = RailExpert(RailExpertConfig(type="rail", flow=FLOW), empty)
    with pytest.raises(ExpertUnavailableError):
        await expert.score(CONVERSATION)


async def test_its_model_calls_are_added_to_the_log_of_the_request() -> None:
    outer: list[dict[str, Any]] = [{"type": "event"}]
    token = processing_log_var.set(outer)
    try:
        await _expert(FakeLLMModel(responses=[UNSAFE])).score(CONVERSATION)
    finally:
        processing_log_var.reset(token)
    assert [entry["type"] for entry in outer] == ["event", "llm_call_info"]
    assert outer[1]["data"].completion == UNSAFE


async def test_explain_and_the_generation_log_show_the_experts_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    config = RailsConfig.from_content(
        yaml_content=CONFIG + "rails: {input: {flows: [ask expert]}}",
        colang_content="define subflow ask expert\n  $result = execute ask_expert\n",
    )
    rails = LLMRails(config, llm=FakeLLMModel(responses=["Hello"]))
    guard = FakeLLMModel(responses=[SAFE])
    expert = RailExpert(
        RailExpertConfig(type="rail", flow=FLOW),
        RailCollaborators(config, lambda: {"content_safety": guard}, rails.runtime.llm_task_manager),
    )

    @action(is_system_action=True)
    async def ask_expert() -> RailOutcome:
        await expert.score(CONVERSATION)
        return RailOutcome.allow()

    rails.register_action(ask_expert, "ask_expert")
    answer = await rails.generate_async(
        messages=[{"role": "user", "content": "hi"}], options={"log": {"llm_calls": True, "activated_rails": True}}
    )
    task = "content_safety_check_input $model=content_safety"
    assert next(call.task for call in rails.explain().llm_calls) == task
    assert task in [call.task for call in answer.log.llm_calls]


@pytest.mark.parametrize(
    ("flow", "problem"),
    [
        ("content safety check input $model=missing", "missing"),
        ("content safety check input", "model"),
        ("content safety check output $model=content_safety", "output"),
        ("topic safety check input $model=content_safety", "topic_safety_check_input"),
        ("self check input $variant=strict", "strict"),
        ("llama guard check input", "llama_guard"),
        ("no such rail", "no such rail"),
        ("mask sensitive data on input", "mask sensitive data on input"),
    ],
)
def test_a_missing_model_prompt_or_rail_is_refused_at_construction(flow: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        _expert(flow=flow)
    assert raised.value.key == "expert.flow"
    assert flow.split(" $", maxsplit=1)[0] in str(raised.value)
    assert "canary" not in str(raised.value)


def test_identity_pins_flow_prompt_model_and_settings_but_no_address() -> None:
    identity = _expert().identity
    assert identity.startswith(f"rail:{FLOW}:")
    moved = CONFIG.replace("127.0.0.1", "guard.example").replace("canary-key", "other-key")
    assert _expert(config=moved, timeout_s=1).identity == identity
    unrelated = CONFIG.replace("Should this be blocked?", "Block?").replace("main-70b", "main-8b")
    assert _expert(config=unrelated).identity == identity
    changed = {
        _expert(config=CONFIG.replace("Judge this", "Rate this")).identity,
        _expert(config=CONFIG.replace("guard-8b", "guard-4b")).identity,
        _expert(config=CONFIG.replace("max_tokens: 50", "max_tokens: 5")).identity,
        _expert(config=CONFIG + "rails: {config: {content_safety: {reasoning: {enabled: true}}}}").identity,
        _expert(flow=SELF_CHECK).identity,
    }
    assert len(changed | {identity}) == 6


def test_a_rail_without_named_model_pins_the_model_that_it_falls_back_to() -> None:
    assert (
        _expert(flow=SELF_CHECK).identity
        != _expert(flow=SELF_CHECK, config=CONFIG.replace("main-70b", "main-8b")).identity
    )


async def test_offline_it_is_built_from_a_folder(tmp_path: Path, judges: Any) -> None:
    judge = judges.answering(judges.completion(UNSAFE))
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "config.yml").write_text(CONFIG.replace("http://127.0.0.1:1/v1", judge.base_url))
    expert = build_expert(RailExpertConfig(type="rail", flow=FLOW, config=Path("guard")), base_dir=tmp_path)
    assert isinstance(expert, Expert)
    assert expert.identity == _expert().identity
    assert (await expert.score(CONVERSATION)).p_unsafe == 1.0
    assert judge.headers[0]["authorization"] == "Bearer canary-key"
    assert judge.requests[0]["messages"][-1]["content"] == "Judge this: canary-text"
    await expert.aclose()


def test_offline_only_the_rails_own_models_are_built(tmp_path: Path) -> None:
    section = RailExpertConfig(type="rail", flow=FLOW, config=tmp_path)
    other = CONFIG.replace("engine: openai\n    model: main-70b", "engine: not_installed\n    model: main-70b")
    (tmp_path / "config.yml").write_text(other)
    assert build_expert(section).identity == _expert().identity
    broken = CONFIG.replace("engine: openai\n    model: guard-8b", "engine: not_installed\n    model: guard-8b")
    (tmp_path / "config.yml").write_text(broken.replace('base_url: "http://127.0.0.1:1/v1", ', ""))
    with pytest.raises(ConfigError, match="content_safety") as raised:
        build_expert(section)
    assert "canary" not in str(raised.value)


def test_a_folder_that_is_no_nemo_configuration_is_refused(tmp_path: Path) -> None:
    section = RailExpertConfig(type="rail", flow=FLOW)
    with pytest.raises(ConfigError, match="not a folder"):
        RailExpert.from_folder(section, tmp_path / "nowhere")
    (tmp_path / "config.yml").write_text("models: 3\ncanary: canary-key\n")
    with pytest.raises(ConfigError, match="cannot read") as raised:
        RailExpert.from_folder(section, tmp_path)
    assert "canary" not in str(raised.value)


def test_a_rail_without_model_pins_its_settings_but_no_address() -> None:
    flow = 'hf classifier check input $classifier="guard"'
    config = CONFIG + (
        "rails: {config: {hf_classifier: {guard: {engine: vllm, model: guard, threshold: 0.5, "
        "blocked_labels: [unsafe], base_url: 'http://127.0.0.1:1'}}}}"
    )
    identity = _expert(flow=flow, config=config).identity
    assert _expert(flow=flow, config=config.replace("127.0.0.1", "guard.example")).identity == identity
    assert _expert(flow=flow, config=config.replace("0.5", "0.6")).identity != identity
