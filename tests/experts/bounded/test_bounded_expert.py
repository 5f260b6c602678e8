"""What stands between the cascade and its expert, around doubles; over sockets it is tried in tests/faults."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from ctd_guardrail.errors import (
    BreakerOpenError,
    CapStoreError,
    ExpertCapError,
    ExpertDisabledError,
    ExpertError,
    ExpertOverloadedError,
    ExpertTimeoutError,
    ExpertUnavailableError,
    ExpertVerdictError,
    OverlongError,
)
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert, Spend, countdown, health_of
from ctd_guardrail.experts.bounded.breaker import BreakerState, CircuitBreaker, Health
from ctd_guardrail.experts.bounded.buckets import MemoryStore
from ctd_guardrail.experts.bounded.bulkhead import Bulkhead
from ctd_guardrail.experts.bounded.spend_cap import Cap, SpendCaps
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.text.conversation import Conversation
from tests.support.internals import shorten_pauses

INPUT = Conversation.from_text("a plain question")
ESTIMATE = 300 + len("a plain question") // 4


class Double:
    """Answers what it is told to, one after another, the last one for ever."""

    identity = "double"

    def __init__(self, *answers: ExpertScore | BaseException) -> None:
        self.answers = list(answers) or [ExpertScore(0.5)]
        self.calls = 0
        self.is_closed = False

    async def score(self, conversation: Conversation) -> ExpertScore:
        self.calls += 1
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def aclose(self) -> None:
        self.is_closed = True


class Hanging(Double):
    async def score(self, conversation: Conversation) -> ExpertScore:
        self.calls += 1
        await asyncio.sleep(3600)
        raise AssertionError


def breaker(failures: int = 2) -> CircuitBreaker:
    return CircuitBreaker(failures=failures, open_s=3600, health=health_of)


def caps(*limits: Cap, store: Any = None) -> SpendCaps:
    return SpendCaps(limits, MemoryStore(lambda: 0.0) if store is None else store, max_principals=10)


@pytest.fixture(autouse=True)
def _pauses_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_pauses(monkeypatch)


async def test_an_expert_without_bounds_is_asked_and_counted() -> None:
    expert = Double(ExpertScore(0.5, attempts=3, tokens=1000), ExpertScore(0.5))
    guarded, spend = BoundedExpert(expert), Spend()
    assert (await guarded.ask(INPUT, spend)).p_unsafe == 0.5
    assert spend == Spend(attempts=3, tokens=1000)
    await guarded.ask(INPUT, spend)
    assert spend == Spend(attempts=4, tokens=1000 + ESTIMATE)
    assert guarded.identity == "double"
    await guarded.aclose()
    assert expert.is_closed


async def test_the_kill_switch_makes_no_call() -> None:
    expert, spend = Double(), Spend()
    with pytest.raises(ExpertDisabledError):
        await BoundedExpert(expert, is_enabled=False).ask(INPUT, spend)
    assert (expert.calls, spend) == (0, Spend())


async def test_calls_of_one_request_beyond_its_own_limit_are_not_made() -> None:
    expert, take = Double(), countdown(2)
    guarded = BoundedExpert(expert)
    for _ in range(2):
        await guarded.ask(INPUT, Spend(), take=take)
    with pytest.raises(ExpertCapError):
        await guarded.ask(INPUT, Spend(), take=take)
    assert expert.calls == 2


async def test_what_was_tried_again_is_paid_for() -> None:
    expert = Double(ExpertScore(0.5, attempts=3))
    guarded = BoundedExpert(expert, caps=caps(Cap("calls", 5, 60.0, 5, per_principal=False)))
    await guarded.ask(INPUT, Spend())
    await guarded.ask(INPUT, Spend())
    with pytest.raises(ExpertCapError):
        await guarded.ask(INPUT, Spend())
    assert expert.calls == 2


async def test_tokens_are_paid_for_as_billed() -> None:
    expert = Double(ExpertScore(0.5, tokens=2000))
    guarded = BoundedExpert(expert, caps=caps(Cap("tokens", 3000, 60.0, 3000, per_principal=False)))
    for _ in range(2):
        await guarded.ask(INPUT, Spend())
    with pytest.raises(ExpertCapError):
        await guarded.ask(INPUT, Spend())


async def test_a_store_that_is_down_stops_the_call_but_not_an_answer_that_is_there() -> None:
    class Store(MemoryStore):
        async def charge(self, demands: Any) -> None:
            raise CapStoreError("down")

    limit = Cap("calls", 5, 60.0, 5, per_principal=False)
    expert = Double(ExpertScore(0.5, attempts=2))
    assert (await BoundedExpert(expert, caps=caps(limit, store=Store())).ask(INPUT, Spend())).p_unsafe == 0.5

    class Down(Store):
        async def take(self, demands: Any) -> bool:
            raise CapStoreError("down")

    with pytest.raises(CapStoreError):
        await BoundedExpert(expert, caps=caps(limit, store=Down())).ask(INPUT, Spend())
    assert expert.calls == 1


TRANSIENT = ExpertUnavailableError("HTTP 503")
FATAL = ExpertUnavailableError("HTTP 401", is_transient=False)


@pytest.mark.parametrize(
    ("answers", "calls", "outcome"),
    [
        ([TRANSIENT, TRANSIENT, ExpertScore(0.5)], 3, None),
        ([TRANSIENT] * 5, 3, ExpertUnavailableError),
        ([FATAL], 1, ExpertUnavailableError),
        ([ExpertVerdictError("odd")], 1, ExpertVerdictError),
        ([ExpertTimeoutError("late")], 1, ExpertTimeoutError),
        ([TRANSIENT, FATAL], 2, ExpertUnavailableError),
    ],
    ids=["recovers", "stays down", "wrong key", "no verdict", "too late", "then a wrong key"],
)
async def test_only_a_transient_fault_is_tried_again_and_every_attempt_counts(
    answers: list[Any], calls: int, outcome: type[ExpertError] | None
) -> None:
    expert, spend = Double(*answers), Spend()
    guarded = BoundedExpert(expert, attempts=3, timeout_s=60)
    if outcome is None:
        assert (await guarded.ask(INPUT, spend)).p_unsafe == 0.5
    else:
        with pytest.raises(outcome):
            await guarded.ask(INPUT, spend)
    assert expert.calls == spend.attempts == calls
    assert spend.tokens == calls * ESTIMATE


async def test_a_late_answer_is_tried_again_if_the_caller_has_time() -> None:
    expert = Double(ExpertTimeoutError("late"), TRANSIENT, ExpertScore(0.5))
    assert (await BoundedExpert(expert, attempts=3, retries_timeouts=True).ask(INPUT, Spend())).p_unsafe == 0.5
    assert expert.calls == 3


async def test_calls_that_a_failure_took_count_as_well() -> None:
    refused = ExpertVerdictError("refused")
    refused.attempts = 4
    spend, limit = Spend(), Cap("calls", 5, 60.0, 5, per_principal=False)
    guarded = BoundedExpert(Double(refused, ExpertScore(0.5)), caps=caps(limit))
    with pytest.raises(ExpertVerdictError):
        await guarded.ask(INPUT, spend)
    assert spend == Spend(attempts=4, tokens=ESTIMATE)
    await guarded.ask(INPUT, Spend())
    with pytest.raises(ExpertCapError):
        await guarded.ask(INPUT, Spend())


async def test_the_experts_own_time_to_come_again_is_kept_within_the_deadline() -> None:
    now = asyncio.get_running_loop().time
    expert, start = Double(ExpertUnavailableError("HTTP 429", retry_after_s=0.05), ExpertScore(0.5)), now()
    await BoundedExpert(expert, attempts=2, timeout_s=60).ask(INPUT, Spend())
    assert (expert.calls, now() - start >= 0.05) == (2, True)
    expert = Double(ExpertUnavailableError("HTTP 429", retry_after_s=61))
    with pytest.raises(ExpertUnavailableError, match="429"):
        await BoundedExpert(expert, attempts=2, timeout_s=60).ask(INPUT, Spend())
    assert expert.calls == 1


@pytest.mark.parametrize(
    "bounds",
    [
        lambda: {"caps": caps(Cap("calls", 1, 3600.0, 1, per_principal=False))},
        lambda: {"breaker": breaker(failures=1)},
    ],
    ids=["cap", "breaker"],
)
async def test_where_another_attempt_may_not_be_made_the_reason_is_why_the_last_one_failed(
    bounds: Callable[[], dict[str, Any]],
) -> None:
    expert, spend = Double(TRANSIENT), Spend()
    with pytest.raises(ExpertUnavailableError, match="503"):
        await BoundedExpert(expert, attempts=3, timeout_s=60, **bounds()).ask(INPUT, spend)
    assert expert.calls == spend.attempts == 1


async def test_one_deadline_holds_for_waiting_and_all_attempts() -> None:
    expert = Hanging()
    guarded = BoundedExpert(expert, bulkhead=Bulkhead(1, 10), attempts=5, timeout_s=0.1)
    asked = [guarded.ask(INPUT, Spend()) for _ in range(4)]
    results = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 10)
    assert [type(result) for result in results] == [ExpertTimeoutError] * 4
    assert guarded.bulkhead is not None
    assert guarded.bulkhead.waiting == 0


async def test_more_than_may_wait_are_refused_and_not_counted_as_calls() -> None:
    expert, spends = Hanging(), [Spend() for _ in range(4)]
    guarded = BoundedExpert(expert, bulkhead=Bulkhead(1, 1), timeout_s=0.05)
    results = await asyncio.gather(*(guarded.ask(INPUT, spend) for spend in spends), return_exceptions=True)
    assert sum(isinstance(result, ExpertOverloadedError) for result in results) == 2
    assert sum(spend.attempts for spend in spends) == expert.calls


async def test_a_local_experts_own_full_queue_is_no_call() -> None:
    limits = caps(Cap("calls", 1, 3600.0, 1, per_principal=False))
    expert, spend = Double(ExpertOverloadedError("full"), ExpertScore(0.5)), Spend()
    guarded = BoundedExpert(expert, caps=limits, breaker=breaker(failures=1))
    with pytest.raises(ExpertOverloadedError):
        await guarded.ask(INPUT, spend)
    assert spend == Spend()
    assert (await guarded.ask(INPUT, spend)).p_unsafe == 0.5


async def test_hanging_opens_the_breaker_and_clients_that_leave_do_not() -> None:
    guarded = BoundedExpert(Hanging(), breaker=breaker(failures=2), timeout_s=0.02)
    assert guarded.breaker is not None
    for _ in range(10):
        task = asyncio.create_task(guarded.ask(INPUT, Spend()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert guarded.breaker.state is BreakerState.CLOSED
    for _ in range(2):
        with pytest.raises(ExpertTimeoutError):
            await guarded.ask(INPUT, Spend())
    assert guarded.breaker.state is BreakerState.OPEN
    with pytest.raises(BreakerOpenError):
        await guarded.ask(INPUT, Spend())


@pytest.mark.parametrize(
    ("error", "health"),
    [
        (ExpertTimeoutError("late"), Health.BAD),
        (TRANSIENT, Health.BAD),
        (FATAL, Health.UNKNOWN),
        (ExpertVerdictError("odd"), Health.GOOD),
        (OverlongError("long"), Health.GOOD),
        (ExpertCapError("used up"), Health.UNKNOWN),
        (CapStoreError("down"), Health.UNKNOWN),
        (asyncio.CancelledError(), Health.UNKNOWN),
        (RuntimeError("bug"), Health.UNKNOWN),
    ],
)
def test_who_writes_the_input_cannot_open_the_breaker(error: BaseException, health: Health) -> None:
    assert health_of(error) is health
