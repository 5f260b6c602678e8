import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ctd_guardrail.cli.app import app

run = CliRunner().invoke
TEXTS = ["a plain question", "a plain threat", "an odd question", "an odd and harmful wish"]


def test_check_prints_one_object_per_input_and_nothing_else(make_rail_folder: Callable[..., Path], judge: Any) -> None:
    result = run(app, ["check", "--config", str(make_rail_folder()), "--json"], input="\n".join(TEXTS))
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["id"], row["verdict"], row["route"], row["reason"]) for row in rows] == [
        ("1", "allow", "probe", "probe_safe"),
        ("2", "block", "probe", "probe_unsafe"),
        ("3", "allow", "expert", "expert_safe"),
        ("4", "block", "expert", "expert_unsafe"),
    ]
    assert all(set(row) == {"id", "verdict", "route", "reason", "latency_ms"} for row in rows)
    assert judge.calls == 2
    assert "2 to the expert" in result.stderr


def test_check_shows_scores_only_when_asked(make_rail_folder: Callable[..., Path]) -> None:
    arguments = ["check", "--config", str(make_rail_folder()), "--json", "--scores", "--concurrency", "3"]
    result = run(app, arguments, input="\n".join(json.dumps({"id": t, "text": t}) for t in TEXTS))
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["id"] for row in rows] == TEXTS
    assert [round(row["p"], 3) for row in rows] == [0.1, 0.9, 0.9, 0.1]
    assert [round(row["d"], 3) for row in rows] == [0.0, 0.0, 0.9, 0.9]
    assert [row["p_expert"] for row in rows] == [None, None, pytest.approx(0.02), pytest.approx(0.98)]


def test_check_reads_conversations_from_a_file(make_rail_folder: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "messages.jsonl"
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "a plain threat"}]
    file.write_text(json.dumps({"messages": messages}) + "\n")
    result = run(app, ["check", "--config", str(make_rail_folder()), str(file)])
    assert result.exit_code == 0
    assert "probe_unsafe" in result.stdout
    assert "1 inputs, 0 to the expert" in result.stdout


@pytest.mark.parametrize("policy", ["block", "probe", "allow"])
def test_check_says_when_the_expert_is_down(make_rail_folder: Callable[..., Path], judge: Any, policy: str) -> None:
    judge.is_down = True
    folder = make_rail_folder(on_failure=policy)
    result = run(app, ["check", "--config", str(folder), "--json"], input="an odd question\n")
    row = json.loads(result.stdout)
    assert (row["reason"], row["route"]) == ("expert_unavailable", "expert")
    assert row["verdict"] == {"block": "block", "probe": "block", "allow": "allow"}[policy]
    assert "could not be judged" in result.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "ok"}\n{"txt": "x"}', "row 2: needs either `text` or `messages`"),
        ('{"text": "ok"}\nplain', "row 2: not a JSON object"),
        ('{"text": "ok"}\n{"text": 5}', "row 2: `text` is not a string"),
        ('{"messages": [1]}', "row 1: `messages` is not a list of objects"),
    ],
)
def test_check_names_the_row_that_is_wrong(make_rail_folder: Callable[..., Path], line: str, message: str) -> None:
    result = run(app, ["check", "--config", str(make_rail_folder()), "--json"], input=line)
    assert result.exit_code == 2
    assert message in result.stderr


def test_validate_says_what_the_configuration_amounts_to(make_rail_folder: Callable[..., Path]) -> None:
    result = run(app, ["validate", str(make_rail_folder())])
    assert result.exit_code == 0
    assert "at most 20.0% of the inputs reach the expert, with confidence 90.0%" in result.stdout
    assert "memory each process remembers by itself" in result.stdout
    assert "2.8 times the calls" in result.stdout


def test_validate_says_that_the_memory_is_shared(make_rail_folder: Callable[..., Path]) -> None:
    folder = make_rail_folder(store={"url_env": "STORE_URL", "key_env": "STORE_KEY", "name": "chat"})
    result = run(app, ["validate", str(folder)])
    assert result.exit_code == 0
    assert "memory shared by all processes of the store, under the name 'chat'" in result.stdout


def section(**changes: Any) -> dict[str, Any]:
    return {"custom_data": {"ctd": {"policy": "x", "expert": {"type": "local", "model": "m"}} | changes}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"custom_data": {}}, "custom_data.ctd: the section is missing"),
        ({"custom_data": {"ctd": 5}}, "custom_data.ctd: is not a mapping"),
        ({"custom_data": 5}, "custom_data: is not a mapping"),
        ({"custom_data": {}, "ctd": {}}, "ctd: NeMo drops a section in this place"),
        ({"rails": {"config": {"ctd": {}}}}, "rails.config.ctd: NeMo drops a section in this place"),
        ({"import_paths": []}, "import_paths: the rail is not imported"),
        ({"rails": {"input": {"flows": ["ctd check inputs"]}}}, "rails.input.flows: 'ctd check input' is not among"),
        (section(alfa=0.1), "custom_data.ctd.alfa: this key is unknown. Did you mean `alpha`?"),
        (section(alpha=0), "custom_data.ctd.alpha: "),
        (section(alpha="a tenth"), "custom_data.ctd.alpha: "),
        (section(on_failure="open"), "custom_data.ctd.on_failure: "),
        (section(expert={"type": "oracle"}), "custom_data.ctd.expert.type: this value is unknown"),
        (section(expert={"type": "openai", "model": "m"}), "custom_data.ctd.expert.base_url: this key is missing"),
        (section(policy="nowhere"), "policy.json cannot be read"),
    ],
)
def test_validate_names_file_key_and_way_out(
    make_rail_folder: Callable[..., Path], config: dict[str, Any], message: str
) -> None:
    folder = make_rail_folder(config=config)
    result = run(app, ["validate", str(folder)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert str(folder) in result.stderr


def test_validate_finds_a_second_section_in_another_file(make_rail_folder: Callable[..., Path]) -> None:
    folder = make_rail_folder()
    (folder / "more").mkdir()
    (folder / "more" / "other.yaml").write_text("custom_data: {something: else}\n")
    result = run(app, ["validate", str(folder)])
    assert result.exit_code == 2
    assert "keeps only one of them" in result.stderr


def test_validate_names_the_smallest_alpha_that_can_be_certified(make_rail_folder: Callable[..., Path]) -> None:
    result = run(app, ["validate", str(make_rail_folder(alpha=0.001))])
    assert result.exit_code == 3
    assert "smallest alpha that they can certify is 0.0115" in result.stderr
    assert "takes 2302 rows" in result.stderr


def test_validate_refuses_a_file_and_a_missing_folder(make_rail_folder: Callable[..., Path]) -> None:
    folder = make_rail_folder()
    for path, message in [(folder / "config.yml", "is a file"), (folder / "no", "no such folder")]:
        result = run(app, ["validate", str(path)])
        assert result.exit_code == 2
        assert message in result.stderr
