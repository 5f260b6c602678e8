from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from calibrate.report.snippet import snippet
from ctd_guardrail.assembly.folder import read_folder
from ctd_guardrail.config.experts import ExpertConfig, LocalExpertConfig, OpenAIExpertConfig, RailExpertConfig
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.policy.manifest import PerformanceRecord, RiskBound
from ctd_guardrail.policy.store import Policy


def load(policy: Policy, folder: Path, expert: ExpertConfig | None) -> CtdConfig:
    """Write the snippet where it says it belongs, and read it as the rail does."""
    text = "".join(piece.text for piece in snippet(policy.manifest, folder, expert))
    (folder.parent / "config.yml").write_text(text, encoding="utf-8")
    return read_folder(folder.parent).config


@pytest.mark.parametrize("name", ["policy", "my policy: #1 {x}", "yes"])
def test_it_names_the_policys_folder(policy: Policy, tmp_path: Path, name: str) -> None:
    config = load(policy, tmp_path / name, None)
    assert config.policy == Path(name)
    assert (config.alpha, config.delta) == (0.2, 0.1)


def test_it_names_the_expert_that_calibration_asked(policy: Policy, tmp_path: Path) -> None:
    openai = OpenAIExpertConfig(
        type="openai", base_url="http://127.0.0.1:1/v1", model="m", api_key_env="KEY", instruction="a: 'b'\n# c"
    )
    local = LocalExpertConfig(type="local", model=str(tmp_path / "expert"))
    rail = RailExpertConfig(type="rail", flow="content safety check input $model=x", config=tmp_path / "rails")
    assert load(policy, tmp_path / "policy", openai).expert == openai
    assert load(policy, tmp_path / "policy", local).expert == LocalExpertConfig(type="local", model="expert")
    assert load(policy, tmp_path / "policy", rail).expert == rail.model_copy(update={"config": Path("rails")})


def test_ids_of_models_are_no_paths(policy: Policy, tmp_path: Path) -> None:
    local = LocalExpertConfig(type="local", model="org/model")
    assert load(policy, tmp_path / "policy", local).expert == local


def test_without_an_expert_it_says_that_one_has_to_be_named(policy: Policy, tmp_path: Path) -> None:
    text = "".join(piece.text for piece in snippet(policy.manifest, tmp_path / "policy", None))
    assert "Insert the expert" in text
    assert yaml.safe_load(text)["custom_data"]["ctd"]["expert"]["type"] == "openai"


def test_a_policy_that_holds_risks_leaves_alpha_out(make_policy: Callable[..., Policy], tmp_path: Path) -> None:
    record = PerformanceRecord(risks=(RiskBound(metric="fnr", max=0.2),), threshold=0.3)
    config = load(make_policy(performance=record), tmp_path / "policy", None)
    assert config.model_fields_set == {"policy", "expert", "on_failure"}
