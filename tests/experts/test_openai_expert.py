import asyncio
import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ctd_guardrail.config.experts import OpenAIExpertConfig
from ctd_guardrail.errors import (
    ConfigError,
    ExpertError,
    ExpertTimeoutError,
    ExpertUnavailableError,
    ExpertVerdictError,
)
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.experts.protocol import Expert, ExpertScore
from ctd_guardrail.text.conversation import Conversation, Message
from tests.support.faulty_expert import answer
from tests.support.internals import put_http_call
from tests.support.waiting import eventually

CONVERSATION = Conversation.from_text("canary-text: how do I kill a Python process?")

FAULTS = {
    "http_401": ExpertUnavailableError,
    "http_404": ExpertUnavailableError,
    "http_429": ExpertUnavailableError,
    "http_500": ExpertUnavailableError,
    "http_503": ExpertUnavailableError,
    "redirect": ExpertUnavailableError,
    "hang": ExpertTimeoutError,
    "slow_drip": ExpertTimeoutError,
    "cut_body": ExpertUnavailableError,
    "no_http": ExpertUnavailableError,
    "endless_body": ExpertVerdictError,
    "bad_json": ExpertVerdictError,
    "deep_json": ExpertVerdictError,
    "binary": ExpertVerdictError,
    "empty": ExpertVerdictError,
    "wrong_schema": ExpertVerdictError,
    "no_choices": ExpertVerdictError,
    "null_choice": ExpertVerdictError,
    "no_logprobs": ExpertVerdictError,
    "null_logprobs": ExpertVerdictError,
    "empty_logprobs": ExpertVerdictError,
}


def _expert(base_url: str, **settings: Any) -> BoundedExpert:
    return build_expert(OpenAIExpertConfig(type="openai", base_url=base_url, model="judge", **settings))


async def _score(base_url: str, conversation: Conversation = CONVERSATION, **settings: Any) -> ExpertScore:
    expert = _expert(base_url, **settings)
    try:
        return await expert.score(conversation)
    finally:
        await expert.aclose()


async def test_p_unsafe_is_the_two_way_softmax_of_the_answer_token(judges: Any) -> None:
    judge = judges.saying(Yes=0.6, No=0.2, Maybe=0.2)
    score = await _score(judge.base_url)
    assert score.p_unsafe == pytest.approx(0.75)
    assert score.attempts == 1
    assert score.tokens == 321


async def test_the_request_asks_for_one_token_with_its_alternatives(judges: Any) -> None:
    judge = judges.saying(Yes=0.5, No=0.5)
    await _score(judge.base_url)
    request = judge.requests[0]
    assert request["model"] == "judge"
    assert request["temperature"] == 0
    assert (request["max_tokens"], request["logprobs"], request["top_logprobs"]) == (1, True, 20)
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert "authorization" not in judge.headers[0]


async def test_json_scoring_reads_verdict_and_confidence(judges: Any) -> None:
    judge = judges.answering(judges.completion('{"verdict": "safe", "confidence": 0.9}'))
    score = await _score(judge.base_url, scoring="json")
    assert score.p_unsafe == pytest.approx(0.1)
    assert judge.requests[0]["response_format"]["type"] == "json_schema"


async def test_tokens_are_unknown_where_the_endpoint_does_not_say(judges: Any) -> None:
    completion = judges.completion(logprobs=judges.alternatives(Yes=1.0))
    completion["usage"] = {"total_tokens": True}
    judge = judges.answering(completion)
    assert (await _score(judge.base_url)).tokens is None


@pytest.mark.parametrize(("fault", "error"), FAULTS.items())
async def test_every_fault_is_its_error_and_never_a_score(
    judges: Any, fault: str, error: type[ExpertError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "canary-key")
    judge = judges.failing(fault)
    with pytest.raises(error) as raised:
        await _score(judge.base_url, timeout_s=0.3 if error is ExpertTimeoutError else 10, api_key_env="JUDGE_API_KEY")
    assert "canary" not in str(raised.value)
    assert raised.value.__cause__ is None
    # A bare HTTP 500 may mean that the chat template takes no system message: that is found out once.
    assert len(judge.requests) == (3 if fault == "http_500" else 1)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Retry-After: 7\r\n", 7.0),
        ("Retry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\n", 0.0),
        ("Retry-After: -5\r\n", None),
        ("Retry-After: soon\r\n", None),
        ("Retry-After: 99999999999999\r\n", None),
        ("", None),
    ],
)
async def test_when_to_come_again_is_read_where_the_expert_says_so(
    judges: Any, header: str, seconds: float | None
) -> None:
    judge = judges.start(answer({}, status=429, headers=header))
    with pytest.raises(ExpertUnavailableError) as raised:
        await _score(judge.base_url)
    assert raised.value.is_transient
    assert raised.value.retry_after_s == seconds


async def test_a_refused_connection_is_unavailable(judges: Any) -> None:
    judge = judges.saying(Yes=1.0)
    with pytest.raises(ExpertUnavailableError):
        await _score("http://127.0.0.1:1/v1")
    assert not judge.requests


async def test_tls_to_a_plain_port_is_unavailable(judges: Any) -> None:
    judge = judges.saying(Yes=1.0)
    with pytest.raises(ExpertUnavailableError):
        await _score(judge.base_url.replace("http:", "https:"), timeout_s=5)


async def test_missing_logprobs_hint_at_json_scoring(judges: Any) -> None:
    with pytest.raises(ExpertVerdictError, match="scoring: json"):
        await _score(judges.failing("no_logprobs").base_url)


async def test_no_log_line_at_any_level_holds_text_or_key(
    judges: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "canary-key")
    with caplog.at_level(logging.DEBUG):
        for fault in ("http_401", "bad_json", "cut_body", "wrong_schema"):
            with pytest.raises(ExpertError):
                await _score(judges.failing(fault).base_url, api_key_env="JUDGE_API_KEY")
        await _score(judges.saying(Yes=1.0).base_url, api_key_env="JUDGE_API_KEY")
    assert caplog.records
    assert "canary" not in caplog.text


async def test_the_key_comes_from_the_named_variable(judges: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", "canary-key\n")
    judge = judges.saying(Yes=1.0)
    expert = _expert(judge.base_url, api_key_env="JUDGE_API_KEY")
    await expert.score(CONVERSATION)
    await expert.aclose()
    assert judge.headers[0]["authorization"] == "Bearer canary-key"
    assert "canary" not in repr(vars(expert))


@pytest.mark.parametrize("value", [None, "  ", "canary\nkey", "canär"])
def test_a_missing_or_broken_key_names_its_variable_only(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_API_KEY", value)
    with pytest.raises(ConfigError, match="JUDGE_API_KEY") as raised:
        _expert("http://127.0.0.1:1/v1", api_key_env="JUDGE_API_KEY")
    assert "can" not in str(raised.value)


async def test_proxies_of_the_environment_are_not_used(judges: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert (await _score(judges.saying(Yes=0.6, No=0.2).base_url)).p_unsafe == pytest.approx(0.75)


async def test_connections_are_reused(judges: Any) -> None:
    judge = judges.saying(Yes=0.5, No=0.5)
    expert = _expert(judge.base_url)
    for _ in range(5):
        await expert.score(CONVERSATION)
    await expert.aclose()
    assert (len(judge.requests), judge.connections) == (5, 1)


def test_it_works_from_many_threads_and_event_loops_again_and_again(judges: Any) -> None:
    judge = judges.saying(Yes=0.6, No=0.2)
    expert = _expert(judge.base_url)

    def caller(_: int) -> list[float]:
        return [asyncio.run(expert.score(CONVERSATION)).p_unsafe for _ in range(5)]

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(caller, range(8)))
    asyncio.run(expert.aclose())
    assert all(p == pytest.approx(0.75) for part in results for p in part)
    assert len(judge.requests) == 40
    assert judge.connections <= 8


async def test_at_most_max_concurrency_calls_are_under_way(judges: Any) -> None:
    busy = peak = 0
    reply = judges.reply(judges.completion(logprobs=judges.alternatives(Yes=1.0)))

    async def counting(writer: asyncio.StreamWriter) -> None:
        nonlocal busy, peak
        busy += 1
        peak = max(peak, busy)
        await asyncio.sleep(0.01)
        busy -= 1
        await reply(writer)

    expert = _expert(judges.start(counting).base_url, max_concurrency=3)
    await asyncio.gather(*(expert.score(CONVERSATION) for _ in range(12)))
    await expert.aclose()
    assert peak == 3


async def test_waiting_for_a_slot_counts_towards_the_deadline(judges: Any) -> None:
    expert = _expert(judges.failing("hang").base_url, max_concurrency=1, timeout_s=0.2)
    results = await asyncio.gather(*(expert.score(CONVERSATION) for _ in range(4)), return_exceptions=True)
    await expert.aclose()
    assert [type(result) for result in results] == [ExpertTimeoutError] * 4


async def test_cancelling_the_caller_cancels_the_http_call(judges: Any) -> None:
    judge = judges.failing("hang")
    expert = _expert(judge.base_url)
    call = asyncio.create_task(expert.score(CONVERSATION))
    await eventually(lambda: judge.requests)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(judge.disconnected.wait, 5)
    await expert.aclose()


async def test_cancelled_calls_free_their_slots_and_end(judges: Any) -> None:
    judge = judges.failing("hang")
    expert = _expert(judge.base_url, max_concurrency=2)
    for _ in range(20):
        call = asyncio.create_task(expert.score(CONVERSATION))
        await asyncio.sleep(0.002)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert expert.bulkhead is not None
    for _ in range(2):
        await asyncio.wait_for(expert.bulkhead.acquire(), 5)
    await eventually(lambda: judge.disconnections >= len(judge.requests))
    await expert.aclose()


async def test_a_cancellation_from_inside_is_a_failure_of_the_expert(
    judges: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expert = _expert(judges.saying(Yes=1.0).base_url)

    async def cancelled(payload: bytes) -> tuple[int, bytes]:
        raise asyncio.CancelledError(payload)

    put_http_call(monkeypatch, cancelled, expert.unbounded)
    with pytest.raises(ExpertUnavailableError, match="cancelled its own call"):
        await expert.score(CONVERSATION)
    await expert.aclose()


async def test_after_closing_it_is_unavailable_and_closing_again_is_harmless(judges: Any) -> None:
    expert = _expert(judges.saying(Yes=1.0).base_url)
    await expert.aclose()
    await expert.aclose()
    with pytest.raises(ExpertUnavailableError):
        await expert.score(CONVERSATION)


async def test_a_dropped_expert_closes_its_connections(judges: Any) -> None:
    judge = judges.saying(Yes=1.0)
    expert = _expert(judge.base_url)
    await expert.score(CONVERSATION)
    client = expert.unbounded._client
    del expert
    gc.collect()
    await eventually(lambda: client.is_closed)


async def test_half_a_surrogate_pair_reaches_the_judge_as_a_question_mark(judges: Any) -> None:
    judge = judges.saying(Yes=1.0)
    await _score(judge.base_url, Conversation((Message("user", "before \ud800 after"),)))
    assert "before ? after" in judge.requests[0]["messages"][1]["content"]


def test_identity_pins_model_scoring_and_prompt_but_no_address() -> None:
    same = {_expert(f"http://{host}:1/v1", timeout_s=t).identity for host, t in (("a.example", 1), ("b.example", 2))}
    assert len(same) == 1
    assert "example" not in same.pop()
    base = _expert("http://a.example/v1")
    assert base.identity != _expert("http://a.example/v1", scoring="json").identity
    assert base.identity != _expert("http://a.example/v1", instruction="Judge otherwise.").identity
    assert isinstance(base, Expert)


def test_one_thread_serves_all_experts(judges: Any) -> None:
    for _ in range(3):
        asyncio.run(_score(judges.saying(Yes=1.0).base_url))
    assert [thread.name for thread in threading.enumerate()].count("ctd-io") == 1
