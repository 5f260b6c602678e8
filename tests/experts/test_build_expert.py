import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from ctd_guardrail.config.experts import ExpertConfig, LocalExpertConfig, OpenAIExpertConfig, RailExpertConfig
from ctd_guardrail.config.validation import validate
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.experts.build import build_expert

SECTION: TypeAdapter[Any] = TypeAdapter(ExpertConfig)


class Holder(BaseModel):
    """Any configuration with an expert in it."""

    expert: ExpertConfig


OPENAI = {"type": "openai", "base_url": "http://127.0.0.1:8000/v1/", "model": "judge"}


def test_the_type_chooses_the_kind() -> None:
    assert isinstance(SECTION.validate_python(OPENAI), OpenAIExpertConfig)
    assert isinstance(SECTION.validate_python({"type": "rail", "flow": "self check input"}), RailExpertConfig)
    assert isinstance(SECTION.validate_python({"type": "local", "model": "some/model"}), LocalExpertConfig)


def test_defaults_are_those_of_the_documentation() -> None:
    section = SECTION.validate_python(OPENAI)
    assert (section.scoring, section.timeout_s, section.api_key_env) == ("logprobs", 10.0, None)
    assert section.base_url == "http://127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"type": "recorded"},
        {"type": "openai"},
        OPENAI | {"unknown": 1},
        OPENAI | {"api_key": "canary"},
        OPENAI | {"api_key_env": "canary-key"},
        OPENAI | {"base_url": "127.0.0.1:8000/v1"},
        OPENAI | {"base_url": "ftp://host/v1"},
        OPENAI | {"base_url": "https:///v1"},
        OPENAI | {"base_url": "https://[canary/v1"},
        OPENAI | {"base_url": "https://host:canary/v1"},
        OPENAI | {"base_url": "https://user:canary@host/v1"},
        OPENAI | {"base_url": "https://host/v1?key=canary"},
        OPENAI | {"timeout_s": 0},
        OPENAI | {"timeout_s": float("nan")},
        OPENAI | {"timeout_s": "canary"},
        OPENAI | {"scoring": "canary"},
        OPENAI | {"max_concurrency": 0},
        OPENAI | {"instruction": ""},
        {"type": "rail"},
        {"type": "rail", "flow": ""},
        {"type": "local", "model": ""},
        {"type": "local", "model": "m", "dtype": "int8"},
        {"type": "local", "model": "m", "completions": {"unsafe": "Yes"}},
        {"type": "local", "model": "m", "window": 0},
    ],
)
def test_a_wrong_section_is_refused_without_quoting_it(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as raised:
        validate(Holder, {"expert": section})
    assert raised.value.key.startswith("expert")
    assert "canary" not in str(raised.value).replace(raised.value.key, "")


def test_a_wrong_address_comes_with_its_remedy() -> None:
    with pytest.raises(ConfigError, match=r"credentials.*api_key_env") as raised:
        validate(Holder, {"expert": OPENAI | {"base_url": "https://user:canary@host/v1"}})
    assert raised.value.key == "expert.base_url"


def test_sections_are_values() -> None:
    section = SECTION.validate_python(OPENAI)
    assert hash(section) == hash(SECTION.validate_python(OPENAI))
    with pytest.raises(ValidationError):
        section.model = "other"


def test_a_local_model_is_looked_for_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "judge").mkdir()
    with pytest.raises(ConfigError, match=str(tmp_path)):
        build_expert(LocalExpertConfig(type="local", model="judge"), base_dir=tmp_path)


def test_a_rail_outside_of_nemo_needs_a_folder() -> None:
    with pytest.raises(ConfigError) as raised:
        build_expert(RailExpertConfig(type="rail", flow="self check input"))
    assert raised.value.key == "expert.config"


def test_an_openai_expert_needs_neither_torch_nor_nemo() -> None:
    program = (
        "import sys\n"
        "from ctd_guardrail.experts.build import build_expert\n"
        "from ctd_guardrail.config.experts import OpenAIExpertConfig\n"
        "build_expert(OpenAIExpertConfig(type='openai', base_url='http://127.0.0.1:1/v1', model='judge'))\n"
        "assert not {'torch', 'transformers', 'nemoguardrails'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=Path(__file__).parents[2])  # noqa: S603  # our own program
