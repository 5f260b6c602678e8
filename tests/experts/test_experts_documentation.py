import re
from pathlib import Path
from typing import Any

import yaml

from ctd_guardrail.config.experts import LocalExpertConfig, OpenAIExpertConfig, PythonExpertConfig, RailExpertConfig

PAGE = Path(__file__).parents[2] / "docs" / "experts.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_every_setting_of_every_kind_is_documented() -> None:
    text = PAGE.read_text(encoding="utf-8")
    kinds: tuple[type[Any], ...] = (OpenAIExpertConfig, RailExpertConfig, LocalExpertConfig, PythonExpertConfig)
    settings = {name for kind in kinds for name in kind.model_fields}
    assert not {name for name in settings if name not in text}
    sections = [yaml.safe_load(block) for block in BLOCKS]
    assert {each["expert"]["type"] for each in sections if "expert" in each} == {"openai", "rail", "local", "python"}
