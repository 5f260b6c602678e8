"""Twelve ways in which an expert is down, inside NeMo Guardrails and over real sockets."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nemoguardrails import LLMRails, RailsConfig
from nemoguardrails.testing import FakeLLMModel

from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.experts.openai.expert import OpenAIExpert
from ctd_guardrail.nemo import setup
from ctd_guardrail.nemo.guards import LoadableGuard, guard_for
from tests.support.endpoints import SENDERS, refusing, serve
from tests.support.faulty_expert import FAULTS, Judge, Judges, hang, running
from tests.support.internals import http_call, put_http_call

UNAVAILABLE = "I'm sorry, but I cannot respond right now: messages cannot be checked. Please try again later."
INPUT = "an odd question"  # which the policy of these tests delegates
AT_ONCE = 16

OUTAGES = {
    "refused": "expert_unavailable",
    "dns": "expert_unavailable",
    "tls": "expert_unavailable",
    "http_401": "expert_unavailable",
    "http_429": "expert_unavailable",
    "http_500": "expert_unavailable",
    "http_503": "expert_unavailable",
    "hang": "expert_timeout",
    "slow_drip": "expert_timeout",
    "cut_body": "expert_unavailable",
    "bad_json": "expert_bad_verdict",
    "wrong_schema": "expert_bad_verdict",
}


@pytest.fixture(scope="module")
def down() -> Iterator[Judge]:
    with running(hang) as judge:
        yield judge


@pytest.fixture
def guards(monkeypatch: pytest.MonkeyPatch) -> list[LoadableGuard]:
    made: list[LoadableGuard] = []

    def remember(*arguments: Any) -> LoadableGuard:
        made.append(guard_for(*arguments))
        return made[-1]

    monkeypatch.setattr(setup, "guard_for", remember)
    return made


@pytest.fixture
def make_rails(make_rail_folder: Callable[..., Path]) -> Callable[..., tuple[LLMRails, FakeLLMModel]]:
    def make(*, parallel: bool, **section: Any) -> tuple[LLMRails, FakeLLMModel]:
        rails = {"input": {"flows": ["ctd check input"], "parallel": parallel}}
        folder = make_rail_folder(config={"rails": rails}, **section)
        llm = FakeLLMModel(responses=["the main LLM's answer"] * 10)
        return LLMRails(RailsConfig.from_path(str(folder)), llm=llm), llm

    return make


def address(down: Judge, outage: str) -> str:
    if outage in FAULTS:
        return down.failing_url(outage)
    return {
        "refused": "http://127.0.0.1:1/v1",
        "dns": "http://no-such-host.invalid:80/v1",
        "tls": f"https://127.0.0.1:{down.port}/v1",
    }[outage]


async def answers(rails: LLMRails, requests: list[list[dict[str, Any]]]) -> list[str]:
    """Return what each request is told, a few of them at a time."""
    waiting = iter(requests)
    told: list[str] = []

    async def client() -> None:
        for messages in waiting:
            reply = await rails.generate_async(messages=messages)
            told.append(reply["content"])

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return told


@pytest.mark.parametrize("parallel", [False, True], ids=["one after another", "parallel"])
async def test_an_outage_blocks_every_request_and_is_counted_by_its_cause(
    make_rails: Callable[..., tuple[LLMRails, FakeLLMModel]],
    guards: list[LoadableGuard],
    down: Judge,
    trials: Callable[..., int],
    record: Callable[..., None],
    *,
    parallel: bool,
) -> None:
    each = trials(full=1000, reduced=4)
    late = {name for name, reason in OUTAGES.items() if reason == "expert_timeout"}
    experts = {
        name: {
            "base_url": address(down, name),
            "timeout_s": 0.05 if name in late else 60,
        }
        for name in OUTAGES
    }
    rails, llm = make_rails(
        parallel=parallel, experts=experts, allow_overrides=["expert"], deadline_s=120, breaker=None
    )
    requests = [
        [{"role": "context", "content": {"ctd": {"expert": name}}}, {"role": "user", "content": INPUT}]
        for name in OUTAGES
        for _ in range(each)
    ]
    told = await answers(rails, requests)
    (guard,) = guards
    counts = guard.tally.snapshot()
    by_reason = Counter(
        {reason.value: n for (verdict, route, reason), n in counts.decisions.items() if verdict == "block"}
    )
    assert by_reason == Counter({reason: each * list(OUTAGES.values()).count(reason) for reason in OUTAGES.values()})
    assert counts.failures == counts.delegated == len(requests)
    # At the first bare HTTP 500 two calls find out that no other form of the request helps.
    assert counts.expert_attempts == len(requests) + 2
    assert llm.inference_count == 0
    record(f"outage_in_{'parallel' if parallel else 'sequence'}", told.count(UNAVAILABLE), len(requests))


@pytest.mark.parametrize("name", ["azure filter", "a proxy's limit on bodies", "tgi too long", "a bare refusal"])
async def test_a_policy_for_outages_lets_nothing_through_that_a_sender_provoked(
    make_rails: Callable[..., tuple[LLMRails, FakeLLMModel]], guards: list[LoadableGuard], name: str
) -> None:
    with contextlib.ExitStack() as stack:
        judge = serve(Judges(stack), refusing(INPUT, SENDERS[name][0]))
        expert = {"type": "openai", "base_url": judge.base_url, "model": "judge", "timeout_s": 60}
        rails, llm = make_rails(
            parallel=False,
            expert=expert,
            deadline_s=120,
            on_failure={"default": "block", "expert_unavailable": "allow"},
        )
        told = await answers(rails, [[{"role": "user", "content": INPUT}]] * 3)
    assert told == [UNAVAILABLE] * 3
    assert llm.inference_count == 0
    counts = guards[0].tally.snapshot()
    assert {reason.value for (_, _, reason) in counts.decisions} == {"expert_bad_verdict"}
    assert not counts.bypasses


async def test_a_cancellation_anywhere_inside_opens_no_gate(
    make_rails: Callable[..., tuple[LLMRails, FakeLLMModel]],
    guards: list[LoadableGuard],
    down: Judge,
    monkeypatch: pytest.MonkeyPatch,
    trials: Callable[..., int],
    record: Callable[..., None],
) -> None:
    expert = {"type": "openai", "base_url": down.failing_url("hang"), "model": "judge", "timeout_s": 0.05}
    rails, llm = make_rails(parallel=True, expert=expert, deadline_s=0.06, breaker=None)
    where = itertools.cycle(("expert", "base model", "its call", "its time"))
    run, score, call = BatchedBaseModel.run, OpenAIExpert.score, http_call()
    place: dict[asyncio.Task[Any] | None, str] = {}

    async def cancelled_run(self: Any, *arguments: Any) -> Any:
        here = place[asyncio.current_task()] = next(where)
        if here == "base model":
            raise asyncio.CancelledError
        return await run(self, *arguments)

    async def cancelled_score(self: Any, conversation: Any) -> Any:
        here = place.pop(asyncio.current_task())
        if here == "expert":
            raise asyncio.CancelledError
        if here == "its call":
            put_http_call(monkeypatch, cancelled_call)
        return await score(self, conversation)

    async def cancelled_call(self: Any, payload: bytes) -> Any:
        put_http_call(monkeypatch, call)
        raise asyncio.CancelledError

    monkeypatch.setattr(BatchedBaseModel, "run", cancelled_run)
    monkeypatch.setattr(OpenAIExpert, "score", cancelled_score)
    total = trials(full=1000, reduced=20)
    told = await answers(rails, [[{"role": "user", "content": INPUT}]] * total)
    assert llm.inference_count == 0
    assert guards[0].tally.snapshot().failures == total
    record("inner_cancellation", told.count(UNAVAILABLE), total)
