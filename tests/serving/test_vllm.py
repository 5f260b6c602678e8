"""The base model behind a server that speaks vLLM's routes: the same readings, and closed whatever goes wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.assembly.prepared import prepare
from ctd_guardrail.cli.examine import Outcome, examine
from ctd_guardrail.config.section import parse_section
from ctd_guardrail.config.source import VllmSourceConfig
from ctd_guardrail.decision import OnFailure, Reason, Route, Verdict
from ctd_guardrail.errors import (
    ActivationError,
    ActivationUnavailableError,
    ConfigError,
    OverlongError,
    PolicyFormatError,
    PolicyMismatchError,
)
from ctd_guardrail.policy.store import Policy
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.serving.vllm import VllmReader, open_scorer
from ctd_guardrail.text.conversation import Conversation
from ctd_guardrail.text.refusals import DEFAULT_REFUSALS
from tests.support.vllm_double import VllmDouble
from tests.support.waiting import wait_until

Exported = Callable[..., tuple[Path, Policy, Path]]

# Of one window and of several.
TEXTS = ["a", "how are you", "one two three", "longer words " * 12, "x y " * 60]
CONVERSATIONS = [Conversation.from_text(text) for text in TEXTS]


@pytest.fixture
def double(exported: Exported) -> Iterator[VllmDouble]:
    server = VllmDouble(exported()[2])
    yield server
    server.stop()


def source(double: VllmDouble, export: Path, **changes: Any) -> VllmSourceConfig:
    section = {"type": "vllm", "base_url": double.base_url, "model": "ctd", "export": str(export), "timeout_s": 2}
    return VllmSourceConfig.model_validate(section | changes)


def open_on(double: VllmDouble, exported: tuple[Path, Policy, Path], **changes: Any) -> tuple[VllmReader, Probes]:
    _, policy, export = exported
    probes = Probes(policy.manifest.probe, policy.probe)
    return open_scorer(source(double, export, **changes), policy.manifest, probes, folder=Path()), probes


def read(reader: Any, conversation: Conversation, probes: Probes) -> np.ndarray[Any, Any]:
    rows: np.ndarray[Any, Any] = asyncio.run(reader.run(conversation, probes)).rows
    return rows


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_readings_equal_those_in_process(family: str, exported: Exported) -> None:
    _, policy, export = exported(family)
    double = VllmDouble(export)
    reader, probes = open_on(double, exported(family))
    engine = BatchedBaseModel(HuggingFaceSource(policy.manifest.activations, device="cpu"))

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(reader.run(conversation, probes) for conversation in CONVERSATIONS))

    served = [reading.rows for reading in asyncio.run(all_at_once())]
    expected = [engine.run_many([conversation], probes)[0] for conversation in CONVERSATIONS]
    engine.close()
    double.stop()
    assert max(len(rows) for rows in expected) > 1
    for rows, wanted in zip(served, expected, strict=True):
        np.testing.assert_allclose(rows, wanted, atol=1e-6)


def test_a_conversation_is_one_request_of_token_ids_for_raw_logits(double: VllmDouble, exported: Exported) -> None:
    reader, probes = open_on(double, exported())
    before = len(double.requests)
    rows = read(reader, CONVERSATIONS[-1], probes)
    (request,) = double.requests[before:]
    assert len(request.input) == len(rows) > 1
    assert all(isinstance(token, int) for window in request.input for token in window)  # type: ignore[union-attr]
    assert (request.task, request.use_activation, request.add_special_tokens) == ("token_classify", False, False)
    assert (request.encoding_format, request.embed_dtype, request.endianness) == ("bytes_only", "float32", "little")
    assert not request.model_extra


def test_connections_are_reused_whatever_loop_asks(double: VllmDouble, exported: Exported) -> None:
    reader, probes = open_on(double, exported())
    for conversation in CONVERSATIONS[:3]:
        read(reader, conversation, probes)
    assert double.connections == 1


def test_what_is_overlong_never_reaches_the_engine(double: VllmDouble, exported: Exported) -> None:
    reader, probes = open_on(double, exported())
    before = len(double.requests)
    too_long = Conversation.from_text("x" * (reader.spec.max_tokens + 1))
    with pytest.raises(OverlongError):
        read(reader, too_long, probes)
    assert len(double.requests) == before


def test_no_more_requests_than_allowed_are_under_way(
    double: VllmDouble, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctd_guardrail.serving.engine_client._CALLS", 2)
    reader, probes = open_on(double, exported())

    async def many() -> list[Any]:
        return await asyncio.gather(*(reader.run(CONVERSATIONS[0], probes) for _ in range(12)))

    readings = asyncio.run(many())
    assert double.connections <= 2
    assert max(reading.queue_ms for reading in readings) > min(reading.queue_ms for reading in readings)


# What the engine proves at the start.


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"name": "another"}, {}, "serves no model 'ctd'"),
        ({"max_model_len": 32}, {}, "takes 32 tokens"),
        ({"task": "classify"}, {}, "HTTP 400.*--pooler-config.task token_classify"),
    ],
)
def test_an_engine_that_was_started_otherwise_is_refused(
    options: dict[str, Any], changes: dict[str, Any], message: str, exported: Exported
) -> None:
    double = VllmDouble(exported()[2], **options)
    try:
        with pytest.raises((PolicyMismatchError, ActivationError), match=message):
            open_on(double, exported(), **changes)
    finally:
        double.stop()


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values * 1.02,
        lambda values: values[:, ::-1],
        lambda values: np.roll(values, 1, axis=0),
        lambda values: 1 / (1 + np.exp(-values)),
    ],
    ids=["scaled", "columns in another order", "tokens shifted", "activation"],
)
def test_an_engine_whose_numbers_are_not_the_exports_is_refused(
    change: Callable[[Any], Any], double: VllmDouble, exported: Exported
) -> None:
    double.change = change
    with pytest.raises(PolicyMismatchError, match="deviate"):
        open_on(double, exported())


def test_an_engine_with_the_probes_of_another_policy_is_refused(
    exported: Exported, make_policy: Callable[..., Any], decoder: Callable[[str], Path]
) -> None:
    double = VllmDouble(exported("mistral")[2])
    with pytest.raises(PolicyMismatchError, match="deviate"):
        open_on(double, exported())
    double.stop()


def test_another_policys_export_is_refused(double: VllmDouble, exported: Exported) -> None:
    _, policy, _ = exported()
    _, _, export = exported("mistral")
    probes = Probes(policy.manifest.probe, policy.probe)
    with pytest.raises(PolicyMismatchError, match="another base model"):
        open_scorer(source(double, export), policy.manifest, probes, folder=Path())


def test_another_tokenizer_is_refused(double: VllmDouble, exported: Exported, tmp_path: Path) -> None:
    _, policy, export = exported()
    for name in ("ctd_export.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        (tmp_path / name).write_bytes((export / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    probes = Probes(policy.manifest.probe, policy.probe)
    with pytest.raises(PolicyMismatchError, match="template_sha256"):
        open_scorer(source(double, tmp_path), policy.manifest, probes, folder=Path())


def test_the_guards_machine_needs_no_weights(double: VllmDouble, exported: Exported, tmp_path: Path) -> None:
    _, policy, export = exported()
    for file in export.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    probes = Probes(policy.manifest.probe, policy.probe)
    reader = open_scorer(source(double, tmp_path), policy.manifest, probes, folder=Path())
    assert read(reader, CONVERSATIONS[0], probes).shape == (1, 2)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ActivationError, match="holds no tokenizer"):
        open_scorer(source(double, tmp_path), policy.manifest, probes, folder=Path())


def test_a_key_is_sent_and_a_wrong_one_is_named(
    double: VllmDouble, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.key = "canary-key"
    with pytest.raises(ActivationError, match=r"HTTP 401.*source\.api_key_env"):
        open_on(double, exported())
    with pytest.raises(ConfigError, match=r"source\.api_key_env: environment variable ENGINE_KEY is not set"):
        open_on(double, exported(), api_key_env="ENGINE_KEY")
    monkeypatch.setenv("ENGINE_KEY", "canary-key")
    reader, probes = open_on(double, exported(), api_key_env="ENGINE_KEY")
    assert read(reader, CONVERSATIONS[0], probes).shape == (1, 2)


# Later: restarts, and another model in the place of the export.


def test_an_engine_that_comes_later_is_waited_for_and_must_prove_itself(
    double: VllmDouble, exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    double.stop()
    reader, probes = open_on(double, exported())
    assert "not there yet" in caplog.text
    with pytest.raises(ActivationUnavailableError):
        read(reader, CONVERSATIONS[0], probes)
    double.change = lambda values: -values
    double.start_again()
    with pytest.raises(PolicyMismatchError):
        read(reader, CONVERSATIONS[0], probes)
    double.change = lambda values: values
    assert read(reader, CONVERSATIONS[0], probes).shape == (1, 2)


def test_after_a_lost_connection_the_engine_must_prove_itself_again(double: VllmDouble, exported: Exported) -> None:
    reader, probes = open_on(double, exported())
    double.fault = lambda handler: handler.drop()
    with pytest.raises(ActivationUnavailableError):
        read(reader, CONVERSATIONS[0], probes)
    double.fault, double.change = None, lambda values: -values
    with pytest.raises(PolicyMismatchError):
        read(reader, CONVERSATIONS[0], probes)


def test_now_and_then_the_engine_proves_itself_while_readings_go_on(
    double: VllmDouble, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctd_guardrail.serving.vllm._VERIFIED_FOR_S", 0.0)
    reader, probes = open_on(double, exported())
    read(reader, CONVERSATIONS[0], probes)
    double.change = lambda values: -values
    with pytest.raises(PolicyMismatchError):
        wait_until(lambda: read(reader, CONVERSATIONS[0], probes) is None)


# The guard around it.


def make_cascade(double: VllmDouble, exported: tuple[Path, Policy, Path], judge: Any, **changes: Any) -> Guard:
    folder, _, export = exported
    prepared = prepare(
        parse_section(
            {
                "policy": str(folder),
                "source": source(double, export).model_dump(mode="json"),
                "expert": {"type": "openai", "base_url": judge.base_url, "model": "judge", "timeout_s": 5},
            }
            | changes
        ),
        folder=Path(),
    )
    return prepared.load()


async def check(cascade: Guard, text: str) -> Any:
    return await cascade.check([{"role": "user", "content": text}])


async def test_decisions_equal_those_in_process(double: VllmDouble, exported: Exported, judge: Any) -> None:
    served = make_cascade(double, exported(), judge)
    local = make_cascade(double, exported(), judge, source=None, device="cpu")
    outcomes = set()
    for text in (f"{text} {number}" for text in TEXTS for number in range(4)):
        one, other = await check(served, text), await check(local, text)
        assert (one.verdict, one.route, one.reason) == (other.verdict, other.route, other.reason)
        assert one.p == pytest.approx(other.p, abs=1e-6)
        assert one.d == pytest.approx(other.d, abs=1e-6)
        outcomes.add((one.route, one.verdict))
    assert {Route.PROBE, Route.EXPERT} == {route for route, _ in outcomes}
    assert {(Route.PROBE, Verdict.ALLOW), (Route.PROBE, Verdict.BLOCK)} <= outcomes


def hang(handler: Any) -> None:
    time.sleep(1.5)
    handler.drop()


def cut(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"\0" * 100)
    handler.close_connection = True


def endless(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"\0" * 65536)


def numbers(count: int, value: float) -> Callable[[Any], None]:
    return lambda handler: handler.stream([np.full(count, value, dtype="<f4").tobytes()])


# "a" has 11 tokens, the letters of <|user|> among them, and the probes read 21 columns.
FAULTS: dict[str, tuple[Callable[[Any], None], Reason]] = {
    "connection dropped": (lambda handler: handler.drop(), Reason.ENGINE_UNAVAILABLE),
    "http 429": (lambda handler: handler.refuse(429, "canary-text"), Reason.OVERLOADED),
    "http 500": (lambda handler: handler.refuse(500, "canary-text"), Reason.ENGINE_UNAVAILABLE),
    "http 503": (lambda handler: handler.refuse(503, "canary-text"), Reason.ENGINE_UNAVAILABLE),
    "http 400": (lambda handler: handler.refuse(400, "canary-text"), Reason.INTERNAL_ERROR),
    "redirect": (lambda handler: handler.refuse(307, "canary-text"), Reason.INTERNAL_ERROR),
    "hang": (hang, Reason.ENGINE_UNAVAILABLE),
    "cut body": (cut, Reason.ENGINE_UNAVAILABLE),
    "empty body": (lambda handler: handler.stream([]), Reason.INTERNAL_ERROR),
    "endless body": (endless, Reason.INTERNAL_ERROR),
    "json": (lambda handler: handler.reply(200, {"data": []}), Reason.INTERNAL_ERROR),
    "wrong K": (numbers(11 * 20, 0.5), Reason.INTERNAL_ERROR),
    "nan": (numbers(11 * 21, float("nan")), Reason.INTERNAL_ERROR),
    "infinity": (numbers(11 * 21, float("inf")), Reason.INTERNAL_ERROR),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_faults_have_their_reason_and_block(
    fault: str, double: VllmDouble, exported: Exported, judge: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    export = exported()[2]
    section = source(double, export, timeout_s=1 if fault == "hang" else 5).model_dump(mode="json")
    cascade = await asyncio.to_thread(make_cascade, double, exported(), judge, source=section)
    behaviour, reason = FAULTS[fault]
    double.fault = behaviour
    decision = await check(cascade, "a")
    assert (decision.verdict, decision.reason) == (Verdict.BLOCK, reason)
    assert judge.calls == 0
    assert "canary-text" not in caplog.text
    double.fault = None
    recovered = await check(cascade, "a")
    assert not recovered.reason.is_failure


@pytest.mark.parametrize("trouble", ["cannot be reached", "refuses", "fails"])
async def test_an_engine_that_is_unavailable_has_its_own_failure_policy(
    trouble: str, double: VllmDouble, exported: Exported, judge: Any
) -> None:
    section = source(double, exported()[2], timeout_s=1).model_dump(mode="json")
    guards: list[tuple[OnFailure, Guard]] = []
    for policy in OnFailure:
        other = OnFailure.BLOCK if policy is OnFailure.ALLOW else OnFailure.ALLOW
        for on_failure in (policy, {"default": other, "engine_unavailable": policy}):
            cascade = await asyncio.to_thread(
                make_cascade, double, exported(), judge, source=section, on_failure=on_failure
            )
            guards.append((policy, cascade))
    if trouble == "cannot be reached":
        double.fault = lambda handler: handler.drop()  # connections from before
        double.stop()
    else:
        double.fault = lambda handler: handler.refuse(503 if trouble == "refuses" else 500, "")
    # No probe has read the input, so the probe has no verdict to fall back on.
    verdicts = {OnFailure.BLOCK: Verdict.BLOCK, OnFailure.PROBE: Verdict.BLOCK, OnFailure.ALLOW: Verdict.ALLOW}
    for policy, cascade in guards:
        decision = await check(cascade, "a")
        assert (decision.reason, decision.on_failure) == (Reason.ENGINE_UNAVAILABLE, policy)
        assert decision.verdict is verdicts[policy]
    assert judge.calls == 0
    if trouble == "cannot be reached":
        double.start_again()


async def test_what_may_pass_is_tried_again_within_the_deadline(
    double: VllmDouble, exported: Exported, judge: Any
) -> None:
    cascade = await asyncio.to_thread(make_cascade, double, exported(), judge)
    left = [503, 429]

    def fail_twice(handler: Any) -> None:
        if left:
            handler.refuse(left.pop(), "")
        else:
            double.fault = None
            handler.stream(double.pool(double.requests[-1]))

    double.fault = fail_twice
    assert not (await check(cascade, "a")).reason.is_failure
    assert not left


async def test_a_request_that_leaves_takes_its_reading_along(
    double: VllmDouble, exported: Exported, judge: Any
) -> None:
    cascade = await asyncio.to_thread(make_cascade, double, exported(), judge)
    double.fault = hang
    task = asyncio.create_task(check(cascade, "a"))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    double.fault = None
    assert not (await check(cascade, "a")).reason.is_failure


@pytest.mark.parametrize(("export", "message"), [("nowhere", r"source\.export"), ("mistral", "another base model")])
def test_an_export_that_is_not_the_policys_is_found_before_anything_is_loaded(
    export: str, message: str, double: VllmDouble, exported: Exported
) -> None:
    folder, _, _ = exported()
    section = {
        "policy": str(folder),
        "source": source(double, exported(export)[2] if export != "nowhere" else Path(export)),
        "expert": {"type": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "judge"},
    }
    with pytest.raises((PolicyFormatError, PolicyMismatchError), match=message):
        prepare(parse_section(section), folder=Path())
    assert not double.connections


async def test_the_doctor_says_where_the_base_model_is_and_whether_it_answers(
    double: VllmDouble, exported: Exported, judge: Any, tmp_path: Path
) -> None:
    folder, _, export = exported()
    section = {
        "policy": str(folder),
        "source": source(double, export).model_dump(mode="json"),
        "expert": {"type": "openai", "base_url": judge.base_url, "model": "judge", "timeout_s": 5},
    }
    content = {"import_paths": ["ctd_guardrail/nemo"], "custom_data": {"ctd": section}}
    (tmp_path / "config.yml").write_text(yaml.safe_dump(content | {"rails": {"input": {"flows": ["ctd check input"]}}}))
    well = {finding.subject: finding for finding in await examine(tmp_path)}
    assert "served as 'ctd' by vLLM" in well["base model"].text
    assert well["built-in safe"].outcome is not Outcome.ERROR
    Runtime.default().memory.clear()
    double.fault = lambda handler: handler.refuse(503, "")
    ill = {finding.subject: finding for finding in await examine(tmp_path)}
    assert ill["built-in safe"].outcome is Outcome.ERROR
    assert "engine_unavailable" in ill["built-in safe"].text


def test_a_source_and_a_base_model_exclude_each_other(double: VllmDouble, exported: Exported, judge: Any) -> None:
    with pytest.raises(ConfigError, match="`base_model` is for a base model in this process"):
        make_cascade(double, exported(), judge, base_model="elsewhere")


@pytest.mark.usefixtures("host_loops")
async def test_nemo_guardrails_does_not_know_the_difference(
    double: VllmDouble, exported: Exported, judge: Any, tmp_path: Path
) -> None:
    from nemoguardrails import LLMRails, RailsConfig  # noqa: PLC0415
    from nemoguardrails.testing import FakeLLMModel  # noqa: PLC0415

    folder, _, export = exported()

    def app(source_section: dict[str, Any] | None) -> LLMRails:
        rails = tmp_path / ("served" if source_section else "local")
        rails.mkdir()
        section = {
            "policy": os.path.relpath(folder, rails),
            "expert": {"type": "openai", "base_url": judge.base_url, "model": "judge", "timeout_s": 5},
            "device": "cpu",
        }
        section |= {"source": source_section} if source_section else {}
        content = {
            "import_paths": ["ctd_guardrail/nemo"],
            "custom_data": {"ctd": section},
            "rails": {"input": {"flows": ["ctd check input"]}},
        }
        (rails / "config.yml").write_text(yaml.safe_dump(content))
        return LLMRails(RailsConfig.from_path(str(rails)), llm=FakeLLMModel(responses=["the answer"] * 100))

    served = app(source(double, export).model_dump(mode="json"))
    local = app(None)
    before = len(double.requests)
    answers = []
    for text in (f"{text} {number}" for text in TEXTS[:3] for number in range(4)):
        message = [{"role": "user", "content": text}]
        replies = [(await each.generate_async(messages=message))["content"] for each in (served, local)]
        assert replies[0] == replies[1]
        answers.append(replies[0])
    assert len(set(answers)) > 1
    assert len(double.requests) >= before + len(answers)
    double.fault = lambda handler: handler.drop()
    unavailable = await served.generate_async(messages=[{"role": "user", "content": "not seen before"}])
    assert unavailable["content"] == DEFAULT_REFUSALS[1]
