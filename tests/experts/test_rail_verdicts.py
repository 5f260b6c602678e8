"""Which answers of a rail's model are verdicts, by NeMo's own rails and parsers."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import RailsConfig
from nemoguardrails.actions.rail_outcome import RailOutcome
from nemoguardrails.guardrails.compiled_rail import RailExecution
from nemoguardrails.llm.taskmanager import LLMTaskManager
from nemoguardrails.logging.explain import LLMCallInfo
from nemoguardrails.manifests import RailDirection, default_rail_catalog
from nemoguardrails.testing import FakeLLMModel
from nemoguardrails.types import LLMResponse

from ctd_guardrail.config.experts import RailExpertConfig
from ctd_guardrail.errors import ConfigError, ExpertError, ExpertUnavailableError, ExpertVerdictError
from ctd_guardrail.experts.rail import verdicts as rail_verdicts
from ctd_guardrail.experts.rail.expert import RailCollaborators, RailExpert
from ctd_guardrail.experts.rail.models import Heard
from ctd_guardrail.text.conversation import Conversation
from tests.support.endpoints import OUTAGES, SENDERS, WORD, completion, refusing, serve

CONVERSATION = Conversation.from_text(f"a question with {WORD} in it")
MODELS = """
models:
  - {type: guard, engine: openai, model: guard-8b, parameters: {base_url: "http://127.0.0.1:1/v1", api_key: a-key}}
  - {type: llama_guard, engine: openai, model: llama-guard}
  - {type: main, engine: openai, model: main-70b}
"""
CONTENT_SAFETY = """
prompts:
  - task: content_safety_check_input $model=guard
    content: "Judge this: {{ user_input }}"
"""
SELF_CHECK = """
prompts:
  - task: self_check_input
    content: "Should this be blocked? {{ user_input }}"
"""
TOPIC = """
prompts:
  - task: topic_safety_check_input $model=guard
    content: "Stay with questions about bread."
"""
LLAMA_GUARD = """
prompts:
  - task: llama_guard_check_input
    content: "Judge this: {{ user_input }}"
"""


def _parsed_by(parser: str, prompts: str = CONTENT_SAFETY) -> str:
    return f"{prompts}    output_parser: {parser}\n"


# name -> (flow, prompts, completions that say safe, that say unsafe, and that say neither)
RAILS: dict[str, tuple[str, str, list[str], list[str], list[str]]] = {
    "topic safety": (
        "topic safety check input $model=guard",
        TOPIC,
        ["on-topic", " On-topic\n"],
        ["off-topic", "OFF-TOPIC "],
        ["off-topic.", "on topic", "on-topic or off-topic", "The message is off-topic", "safe", "No", "unsafe"],
    ),
    "llama guard": (
        "llama guard check input",
        LLAMA_GUARD,
        ["safe", "\n\nSafe "],
        ["unsafe", "unsafe\nS1", "unsafe\nO3,O14", "unsafe S1 S2"],
        ["safe\nunsafe", "safe to answer?", "safety: unsafe", "unsafe to judge for me", "Yes", "no"],
    ),
    "self check": (
        "self check input",
        SELF_CHECK,
        ["No", "no.", " **No** ", "Safe"],
        ["Yes", "YES!", '"yes"', "unsafe", "unsafe\nS2"],
        [
            "Not safe!",
            "No, I would rather not judge it",
            "Yes and no",
            "no yes",
            "Safe? Unsafe.",
            "off-topic",
            "N",
            "{}",
        ],
    ),
    "self check, variant": (
        "self check input $variant=strict",
        SELF_CHECK.replace("self_check_input", "self_check_input $variant=strict"),
        ["No"],
        ["Yes"],
        ["Not safe!", "No problem at all"],
    ),
    "self check, by another parser": (
        "self check input",
        _parsed_by("nemoguard_parse_prompt_safety", SELF_CHECK),
        ['{"User Safety": "safe"}'],
        ['{"User Safety": "unsafe"}'],
        ["No", "Yes"],
    ),
    "content safety": (
        "content safety check input $model=guard",
        _parsed_by("nemoguard_parse_prompt_safety"),
        ['{"User Safety": "safe"}', ' {"User Safety": "SAFE", "Response Safety": "unsafe"} '],
        ['{"User Safety": "unsafe", "Safety Categories": "S1, S2"}', '{"User Safety": "Unsafe"}'],
        ['{"User Safety": "controversial"}', '{"User Safety": ""}', '{"Safety": "safe"}', "safe", "[]", '{"User'],
    ),
    "content safety, lines": (
        "content safety check input $model=guard",
        _parsed_by("nemotron_content_safety_parse_prompt_safety"),
        ["User Safety: safe", "user safety: safe\nResponse Safety: unsafe"],
        ["User Safety: unsafe\nSafety Categories: Violence, Other", "<think>odd</think>\nUser Safety: unsafe"],
        ["User Safety: safe\nUser Safety: unsafe", "User Safety: safer", "safe", "<think>User Safety: safe"],
    ),
    "content safety, reasoning": (
        "content safety check input $model=guard",
        _parsed_by("nemotron_reasoning_parse_prompt_safety"),
        ["Prompt harm: unharmful", "<think>\nBread.\n</think>\n\nPrompt harm: unharmful\nResponse Harm: unharmful"],
        ["Prompt harm: harmful\nResponse Harm: unharmful"],
        ["Prompt harm: maybe", "harmful", "Response Harm: harmful", "<think>Prompt harm: harmful"],
    ),
    "content safety, words": (
        "content safety check input $model=guard",
        _parsed_by("is_content_safe"),
        ["safe", "No"],
        ["unsafe S4", "yes"],
        ["not safe", "it is safe", "unsafe because of the words"],
    ),
}
# What a model says that is empty, declines, or talks; no rail has it for a verdict.
PROSE = [
    "",
    " \n",
    "I'm not able to judge that.",
    "I'm sorry, but I can't assist.",
    "As an AI model, safe answers matter to me.",
    "No comment.",
    "<think>",
]


def _expert(flow: str, prompts: str, llm: Any, **collaborators: Any) -> RailExpert:
    config = RailsConfig.from_content(yaml_content=MODELS + prompts)
    llms = {model.type: llm for model in config.models}
    manager = collaborators.get("manager") or LLMTaskManager(config)
    return RailExpert(RailExpertConfig(type="rail", flow=flow), RailCollaborators(config, lambda: llms, manager))


@pytest.mark.parametrize(
    ("name", "answer", "p_unsafe"),
    [
        (name, answer, p_unsafe)
        for name, (_, _, safe, unsafe, _) in RAILS.items()
        for answers, p_unsafe in ((safe, 0.0), (unsafe, 1.0))
        for answer in answers
    ],
)
async def test_a_rails_own_form_of_verdict_is_its_score(name: str, answer: str, p_unsafe: float) -> None:
    flow, prompts, *_ = RAILS[name]
    score = await _expert(flow, prompts, FakeLLMModel(responses=[answer])).score(CONVERSATION)
    assert score.p_unsafe == p_unsafe


@pytest.mark.parametrize(
    ("name", "answer"),
    [(name, answer) for name, (*_, neither) in RAILS.items() for answer in [*neither, *PROSE]],
)
async def test_anything_else_is_no_verdict(name: str, answer: str) -> None:
    flow, prompts, *_ = RAILS[name]
    with pytest.raises(ExpertVerdictError) as raised:
        await _expert(flow, prompts, FakeLLMModel(responses=[answer])).score(CONVERSATION)
    assert WORD not in str(raised.value)


async def test_an_answer_that_a_filter_ended_is_no_verdict() -> None:
    flow, prompts, *_ = RAILS["self check"]
    llm = FakeLLMModel(llm_responses=[LLMResponse(content="No", finish_reason="content_filter")])
    with pytest.raises(ExpertVerdictError, match="finish_reason content_filter"):
        await _expert(flow, prompts, llm).score(CONVERSATION)


@pytest.mark.parametrize(
    ("prompts", "problem"),
    [
        (CONTENT_SAFETY, "names no output_parser"),
        (_parsed_by("user_intent"), "has the output_parser user_intent"),
        (_parsed_by("nemoguard_parse_response_safety"), "nemoguard_parse_response_safety"),
    ],
)
def test_a_prompt_whose_parser_reads_no_verdict_is_refused_at_the_start(prompts: str, problem: str) -> None:
    # NeMo would take every answer for safe, or read the wrong one of two verdicts.
    with pytest.raises(ConfigError, match=problem) as raised:
        _expert("content safety check input $model=guard", prompts, None)
    assert raised.value.key == "expert.flow"


def test_the_parser_of_another_models_prompt_does_not_matter() -> None:
    prompts = _parsed_by("is_content_safe") + "  - {task: content_safety_check_input $model=other, content: Judge}\n"
    assert _expert("content safety check input $model=guard", prompts, None).identity


async def test_a_parser_of_the_operators_own_is_believed_once_it_is_registered() -> None:
    prompts = _parsed_by("stars")
    manager = LLMTaskManager(RailsConfig.from_content(yaml_content=MODELS + prompts))
    flow = "content safety check input $model=guard"
    with pytest.raises(ExpertVerdictError):
        await _expert(flow, prompts, FakeLLMModel(responses=["*"]), manager=manager).score(CONVERSATION)
    manager.register_output_parser(lambda answer: [len(answer) < 3], "stars")
    llm = FakeLLMModel(responses=["*", "*****", ""])
    expert = _expert(flow, prompts, llm, manager=manager)
    assert [(await expert.score(CONVERSATION)).p_unsafe for _ in range(2)] == [0.0, 1.0]
    with pytest.raises(ExpertVerdictError):
        await expert.score(CONVERSATION)


async def test_a_rail_that_asks_no_model_gives_its_own_verdict() -> None:
    section = "rails: {config: {regex_detection: {input: {patterns: [canary]}}}}\n"
    expert = _expert("regex check input", section, None)
    assert (await expert.score(CONVERSATION)).p_unsafe == 1.0
    assert (await expert.score(Conversation.from_text("bread"))).p_unsafe == 0.0


def test_a_rail_of_unknown_forms_needs_an_answer_at_least() -> None:
    expert = _expert("regex check input", "rails: {config: {regex_detection: {input: {patterns: [x]}}}}\n", None)

    def read(completion: str | None) -> float:
        calls = (LLMCallInfo(task="other", completion=completion),)
        return expert._read(RailExecution(outcome=RailOutcome.block(), llm_calls=calls), Heard()).p_unsafe

    assert read("anything") == read(None) == 1.0
    with pytest.raises(ExpertVerdictError):
        read(" ")


def test_every_input_rail_that_asks_a_model_has_its_forms() -> None:
    asking = {
        surface.action.name
        for (direction, _), surface in default_rail_catalog().surfaces().items()
        if direction is RailDirection.INPUT and "llms" in inspect.signature(_action(surface.action.target)).parameters
    }
    assert asking == {*rail_verdicts._ACTIONS, *rail_verdicts._DEFAULT_PARSERS}


def _action(target: str) -> Any:
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def test_every_parser_of_nemo_is_known() -> None:
    parsers = LLMTaskManager(RailsConfig.from_content(yaml_content=MODELS)).output_parsers
    assert set(parsers) == {*rail_verdicts._PARSERS, *rail_verdicts._OTHER_PARSERS}


async def _error(judge: Any, tmp_path: Path) -> ExpertError:
    """Return the error of a rail whose model is asked through NeMo's own client."""
    prompts = _parsed_by("nemoguard_parse_prompt_safety")
    (tmp_path / "config.yml").write_text(MODELS.replace("http://127.0.0.1:1/v1", judge.base_url) + prompts)
    section = RailExpertConfig(type="rail", flow="content safety check input $model=guard", timeout_s=60)
    with pytest.raises(ExpertError) as raised:
        await RailExpert.from_folder(section, tmp_path).score(CONVERSATION)
    assert WORD not in str(raised.value)
    return raised.value


@pytest.mark.parametrize("name", SENDERS)
async def test_what_a_sender_provokes_at_a_rails_model_is_never_an_outage(
    judges: Any, name: str, tmp_path: Path
) -> None:
    refusal, _ = SENDERS[name]
    assert isinstance(await _error(serve(judges, refusing(WORD, refusal)), tmp_path), ExpertVerdictError)


# NeMo's client tries the others again after pauses.
@pytest.mark.parametrize("name", [name for name, ((status, _), _) in OUTAGES.items() if status in {200, 401, 403, 404}])
async def test_what_no_sender_provokes_at_a_rails_model_is_an_outage(judges: Any, name: str, tmp_path: Path) -> None:
    fault, is_transient = OUTAGES[name]
    error = await _error(serve(judges, lambda request: fault), tmp_path)
    if name == "failure inside a choice":  # of which NeMo keeps the empty answer
        assert isinstance(error, ExpertVerdictError)
    else:
        assert isinstance(error, ExpertUnavailableError)
        assert error.is_transient is is_transient
        assert "expert.api_key_env" not in str(error)


@pytest.mark.parametrize("status", [400, 422])
async def test_a_parameter_that_the_rails_model_does_not_take_is_no_senders_doing(
    judges: Any, status: int, tmp_path: Path
) -> None:
    error = {"message": "Unsupported parameter", "param": "max_tokens", "code": "unsupported_parameter"}
    raised = await _error(serve(judges, lambda request: (status, {"error": error})), tmp_path)
    assert isinstance(raised, ExpertUnavailableError)
    assert not raised.is_transient
    assert "max_tokens" in str(raised)


async def test_a_rails_model_that_gives_no_completion_is_no_verdict(judges: Any, tmp_path: Path) -> None:
    assert isinstance(await _error(judges.answering({"id": "1", "choices": []}), tmp_path), ExpertVerdictError)
    assert isinstance(await _error(judges.answering(completion(None)), tmp_path), ExpertVerdictError)
