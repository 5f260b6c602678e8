"""The schemas for editors say what the models say."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from calibrate.cli.app import app as calibrate_app
from calibrate.config.file import CalibrateConfig
from ctd_guardrail.cli.app import app
from ctd_guardrail.config.on_failure import OnFailureByCause
from ctd_guardrail.config.schema import config_schema, model_schema
from ctd_guardrail.decision import ALWAYS_BLOCKED, Reason

EXAMPLES = Path(__file__).parents[2] / "config_examples"
SCHEMAS = {
    "config.yml": EXAMPLES / "schema/config.schema.json",
    "CALIBRATE.yml": EXAMPLES / "schema/calibrate.schema.json",
}
FILES = sorted(file for name in SCHEMAS for file in EXAMPLES.rglob(name))


@pytest.mark.parametrize(
    ("command", "name", "schema"),
    [(app, "config.yml", config_schema()), (calibrate_app, "CALIBRATE.yml", model_schema(CalibrateConfig))],
    ids=["config.yml", "CALIBRATE.yml"],
)
def test_the_schema_in_the_tree_is_current(command: Any, name: str, schema: dict[str, Any]) -> None:
    printed = CliRunner().invoke(command, ["schema"])
    assert printed.exit_code == 0
    assert json.loads(printed.stdout) == schema
    assert SCHEMAS[name].read_text() == printed.stdout, f"write it anew: `schema > {SCHEMAS[name]}`"
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    "schema", [config_schema(), model_schema(CalibrateConfig)], ids=["config.yml", "CALIBRATE.yml"]
)
def test_every_key_is_explained(schema: dict[str, Any]) -> None:
    section = schema["properties"].get("custom_data", {}).get("properties", {}).get("ctd", schema)
    models = [section, *(model for model in schema["$defs"].values() if "properties" in model)]
    assert len(models) > 5
    for model in models:
        for name, field in model["properties"].items():
            assert field.get("description"), f"{model.get('title')}.{name} stands without an explanation"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(EXAMPLES)))
def test_every_example_is_valid_and_names_its_schema(file: Path) -> None:
    content = yaml.safe_load(file.read_text())
    if file.name == "config.yml" and "custom_data" not in content:
        return
    jsonschema.validate(content, json.loads(SCHEMAS[file.name].read_text()))
    line = re.match(r"# yaml-language-server: \$schema=(\S+)\n", file.read_text())
    assert line, "an editor does not know the schema"
    assert (file.parent / line[1]).resolve() == SCHEMAS[file.name]


@pytest.mark.parametrize(
    "section",
    [
        {"policy": "p"},
        {"policy": "p", "expert": {"type": "local", "model": "m"}, "alfa": 0.1},
        {"policy": "p", "expert": {"type": "local", "model": "m"}, "delta": 1.5},
        {"policy": "p", "expert": {"type": "local", "model": "m"}, "on_failure": "open"},
        {"policy": "p", "expert": {"type": "oracle"}},
        {"policy": "p", "expert": {"type": "local", "model": "m", "base_url": "http://x"}},
        {"policy": "p", "expert": {"type": "local", "model": "m"}, "allow_overrides": ["policy"]},
    ],
    ids=str,
)
def test_what_the_rail_refuses_an_editor_underlines(section: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"custom_data": {"ctd": section}}, config_schema())


def test_one_value_stands_for_a_list_where_the_file_may_say_so() -> None:
    schema = model_schema(CalibrateConfig)
    content: dict[str, Any] = {
        "base": {"model": "m", "layers": 4},
        "data": {"path": "a.jsonl", "expert_column": "e"},
        "budget": {"alpha": 0.1, "risk": {"metric": "fnr", "max": 0.1}},
        "output": "./policy",
    }
    jsonschema.validate(content, schema)
    content["base"]["layers"], content["data"]["path"] = [2, 4], ["a.jsonl", "b.jsonl"]
    jsonschema.validate(content, schema)
    content["base"]["layers"] = "all"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


def test_other_keys_of_nemo_are_left_alone() -> None:
    content = {
        "models": [],
        "custom_data": {"mine": 1, "ctd": {"policy": "p", "expert": {"type": "local", "model": "m"}}},
    }
    jsonschema.validate(content, config_schema())


def test_the_failure_policy_has_a_key_for_every_cause_that_it_decides() -> None:
    failures = {reason for reason in Reason if reason.is_failure}
    assert failures >= ALWAYS_BLOCKED
    assert OnFailureByCause.model_fields.keys() - {"default"} == failures - ALWAYS_BLOCKED


def test_one_value_stands_for_a_list_of_caps_too() -> None:
    section = {"policy": "p", "expert": {"type": "local", "model": "m"}, "cap": {"calls": 1, "per_s": 60}}
    jsonschema.validate({"custom_data": {"ctd": section}}, config_schema())
