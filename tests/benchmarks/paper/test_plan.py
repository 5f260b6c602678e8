from pathlib import Path

import pytest

from benchmarks.paper.plan import load_plan
from ctd_guardrail.config.experts import LocalExpertConfig
from ctd_guardrail.errors import ConfigError

ROOT = Path(__file__).parents[3]


def test_the_plan_of_the_page_loads() -> None:
    plan = load_plan(ROOT / "benchmarks" / "paper" / "settings.yml")
    assert [setting.name for setting in plan.settings] == [
        *("M", "S edos", "S diasafety", "S davidson", "A edos", "A diasafety", "A davidson", "H"),
    ]
    # The ridge reads the layer of the first recipe.
    assert plan.ridge_layers.tolist() == [1]


def test_the_plan_with_the_models_of_the_paper_loads() -> None:
    plan = load_plan(ROOT / "config_examples" / "paper" / "plan.yml")
    assert (plan.base.model, plan.base.layers, plan.base.site) == (
        "meta-llama/Llama-3.2-1B-Instruct",
        (11,),
        "input_norm",
    )
    strong, weak = plan.experts["strong"], plan.experts["weak"]
    assert isinstance(strong, LocalExpertConfig)
    assert isinstance(weak, LocalExpertConfig)
    assert (strong.model, weak.model) == ("google/gemma-3-27b-it", "meta-llama/Llama-3.2-1B-Instruct")
    assert strong.completions is not None
    assert (strong.completions.unsafe, strong.completions.safe) == ("high", "low")


@pytest.mark.parametrize(
    ("safety", "problem"),
    [("{}", "one source"), ("{group: a, rows: 5}", "one source"), ("{rows: 0}", "greater than or equal to 1")],
)
def test_a_safety_probe_has_one_source(tmp_path: Path, safety: str, problem: str) -> None:
    file = tmp_path / "plan.yml"
    file.write_text(
        "base: {model: m, layers: 1}\nexperts: {e: e}\nrecipes: {r: {}}\n"
        f"settings: [{{name: S, data: rows.jsonl, safety: {safety}}}]\n"
    )
    with pytest.raises(ConfigError, match=problem):
        load_plan(file)


RECIPES = "recipes: {r: {}, t: {kinds: [ema]}}\n"


@pytest.mark.parametrize(
    ("recipes", "setting", "problem"),
    [
        ("recipes: {t: {kinds: [ema]}, r: {}}\n", "", "the first recipe reads every token"),
        (RECIPES, ", token_recipes: [r]", "S names r"),
        (RECIPES + "seeds: {q: 2}\n", "", "seeds names q"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused(tmp_path: Path, recipes: str, setting: str, problem: str) -> None:
    file = tmp_path / "plan.yml"
    file.write_text(
        "base: {model: m, layers: 1}\nexperts: {e: e}\n"
        f"{recipes}settings: [{{name: S, data: rows.jsonl, safety: {{rows: 20}}{setting}}}]\n"
    )
    with pytest.raises(ConfigError, match=problem):
        load_plan(file)
