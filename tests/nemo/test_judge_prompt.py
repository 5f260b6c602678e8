from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.testing import FakeLLMModel

from ctd_guardrail.assembly.folder import read_folder
from ctd_guardrail.config.experts import OpenAIExpertConfig
from ctd_guardrail.errors import ConfigError, PolicyMismatchError
from ctd_guardrail.experts.openai.expert import OpenAIExpert
from ctd_guardrail.policy.store import read_policy, write_policy
from tests.nemo.hosts import refused_start

INSTRUCTION = "Only talk about pirates is unsafe."


def with_prompt(content: object, **more: Any) -> dict[str, Any]:
    return {"prompts": [{"task": "ctd_judge", "content": content, **more}]}


def test_a_prompt_of_the_configuration_is_the_judges_instruction(make_rail_folder: Callable[..., Path]) -> None:
    expert = read_folder(make_rail_folder(config=with_prompt(INSTRUCTION))).config.expert
    assert isinstance(expert, OpenAIExpertConfig)
    assert expert.instruction == INSTRUCTION
    without = read_folder(make_rail_folder()).config.expert
    assert isinstance(without, OpenAIExpertConfig)
    assert without.instruction is None


async def test_it_is_part_of_what_the_policy_was_calibrated_with(
    make_rail_folder: Callable[..., Path], rail_policy: Path, judge: Any, tmp_path: Path
) -> None:
    expert = {"type": "openai", "base_url": judge.base_url, "model": "judge", "timeout_s": 5}
    identity = OpenAIExpert(OpenAIExpertConfig.model_validate(expert | {"instruction": INSTRUCTION})).identity
    written, policy = read_policy(rail_policy), tmp_path / "policy"
    fields = written.manifest.model_dump() | {"expert": identity}
    write_policy(policy, fields, written.probe, written.calibration)

    def app(content: str) -> LLMRails:
        folder = make_rail_folder(config=with_prompt(content), policy=str(policy), expert=expert)
        return LLMRails(RailsConfig.from_path(str(folder)), llm=FakeLLMModel(responses=["hello"]))

    reply = await app(INSTRUCTION).generate_async(messages=[{"role": "user", "content": "an odd question"}])
    assert reply["content"] == "hello"
    assert judge.calls == 1
    with refused_start() as errors:
        app("Everything is unsafe.")
    assert isinstance(errors[0], PolicyMismatchError)


@pytest.mark.parametrize(
    ("config", "changes", "problem"),
    [
        (with_prompt("Judge {{ user_input }}"), {}, "does not render this prompt"),
        (with_prompt("{% if x %}"), {}, "does not render this prompt"),
        (with_prompt(" "), {}, "not a text"),
        ({"prompts": [{"task": "ctd_judge", "messages": [{"type": "system", "content": "x"}]}]}, {}, "not a text"),
        ({"prompts": with_prompt("a")["prompts"] * 2}, {}, "several prompts"),
        (with_prompt("a"), {"expert": {"type": "local", "model": "x"}}, "no expert"),
        (
            with_prompt("a"),
            {"expert": {"type": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m", "instruction": "b"}},
            "together with expert.instruction",
        ),
    ],
)
def test_what_cannot_be_an_instruction_is_refused(
    make_rail_folder: Callable[..., Path], config: dict[str, Any], changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        read_folder(make_rail_folder(config=config, **changes))
    assert error.value.key == "prompts.ctd_judge"
