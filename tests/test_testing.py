"""The doubles for users' own tests behave as what they stand for."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctd_guardrail import (
    Conversation,
    Decision,
    Expert,
    ExpertScore,
    ExpertTimeoutError,
    Guard,
    Mode,
    OnFailure,
    Reason,
    Route,
    Verdict,
    load_guard,
)
from ctd_guardrail.testing import FakeExpert, FakeGuard, guarding_nemo

OF_THE_REQUEST = {Reason.BLANK, Reason.BAD_OVERRIDE, Reason.NOT_READY}
TEXTS = [f"{word} {other} question" for word in ("a", "an odd", "the best", "harmful") for other in "bcdefghij"]


def user(text: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def shape(decision: Decision) -> dict[str, Any]:
    """Return all of a decision but the scores and times themselves."""
    return {
        "verdict": decision.verdict,
        "route": decision.route,
        "reason": decision.reason,
        "has": [score is not None for score in (decision.p, decision.d, decision.p_expert, decision.receipt)],
        "mode": decision.mode,
        "on_failure": decision.on_failure,
        "is": [decision.is_bypass, decision.is_blocking],
        "timings": type(decision.timings),
    }


async def test_the_expert_answers_by_its_script_and_records_what_it_was_asked() -> None:
    late = ExpertTimeoutError("late")
    expert = FakeExpert({"b": 0.9, "c": late, "d": ExpertScore(0.1, attempts=2)}, default=0.4)
    assert isinstance(expert, Expert)
    asked = [Conversation.from_text(text) for text in "abcd"]
    found = await asyncio.gather(*map(expert.score, asked), return_exceptions=True)
    assert found == [ExpertScore(0.4), ExpertScore(0.9), late, ExpertScore(0.1, attempts=2)]
    assert expert.asked == asked
    await expert.aclose()
    assert expert.is_closed


@pytest.mark.parametrize(
    ("changes", "outage"),
    [
        ({}, False),
        ({"mode": "shadow"}, False),
        ({}, True),
        ({"on_failure": "allow"}, True),
        ({"on_failure": "probe"}, True),
        ({"breaker": None, "expert_enabled": False, "on_failure": "allow"}, False),
        ({"cap": {"calls": 1, "per_s": 3600, "burst": 1}, "on_failure": "allow"}, False),
    ],
    ids=str,
)
async def test_the_guards_decisions_have_the_shape_of_a_real_guards(
    make_rail_folder: Callable[..., Path], judge: Any, changes: dict[str, Any], *, outage: bool
) -> None:
    real = load_guard(make_rail_folder(**changes))
    judge.is_down = outage
    requests = [
        *map(user, TEXTS),
        user(" "),
        user([{"type": "image_url", "image_url": {"url": "x"}}]),
        user("a long text " * 20_000),
        [*user("first"), {"role": "assistant", "content": "an answer"}, *user("second")],
        [],
        [{"role": "user"}],
        [{"role": "robot", "content": "x"}],
    ]
    expected = [await real.check(request) for request in requests]
    asked_for_more = await real.check(user("a"), {"alpha": 0.5})
    await real.aclose()
    found, reasons = [], set()
    for request, decision in zip(requests, expected, strict=True):
        fake = FakeGuard(
            default=decision.reason if decision.reason is not Reason.BLANK else "allow",
            on_failure=OnFailure(changes.get("on_failure", "block")),
            mode=Mode(changes.get("mode", "enforce")),
        )
        found.append(await fake.check(request))
        reasons.add(decision.reason)
    for request, one, other in zip(requests, expected, found, strict=True):
        if one.on_failure is OnFailure.PROBE and one.p is not None:
            # The probe's verdict is a matter of its score.
            assert shape(one) | {"verdict": 0, "is": 0} == shape(other) | {"verdict": 0, "is": 0}, request
        else:
            assert shape(one) == shape(other), request
    assert shape(await FakeGuard(mode=Mode(changes.get("mode", "enforce"))).check(user("a"), {"alpha": 0.5})) == shape(
        asked_for_more
    )
    assert {Reason.BLANK, Reason.NON_TEXT, Reason.OVERLONG} < reasons
    assert outage == (Reason.EXPERT_UNAVAILABLE in reasons)
    assert ("cap" in changes) == (Reason.CAP_EXHAUSTED in reasons)
    assert ("expert_enabled" in changes) == (Reason.EXPERT_DISABLED in reasons)


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason not in OF_THE_REQUEST])
async def test_every_reason_that_a_guard_has_of_itself_can_be_scripted(reason: Reason) -> None:
    async with FakeGuard({"odd": reason}) as guard:
        odd, plain = await guard.check(user("odd")), await guard.check(user("plain"))
    assert (odd.reason, plain.reason) == (reason, Reason.PROBE_SAFE)
    assert odd.reason.is_failure == (odd.on_failure is not None or reason in {Reason.NON_TEXT, Reason.OVERLONG})
    assert guard.expert.is_closed


@pytest.mark.parametrize("outcome", ["blank", "bad_override", "not_ready", "maybe"])
def test_what_cannot_be_scripted_is_refused_at_once(outcome: str) -> None:
    with pytest.raises(ValueError, match=outcome):
        FakeGuard({"odd": outcome})


async def test_the_guard_records_requests_and_judges_each_turn_of_a_conversation() -> None:
    guard = FakeGuard({"odd": Verdict.BLOCK})
    assert isinstance(guard, Guard)
    messages = [*user("odd"), {"role": "assistant", "content": "an answer"}, *user("plain")]
    decision = await guard.check(messages, principal="me", asides=["a note"])
    assert decision.is_blocking
    (asked,) = guard.asked
    assert (asked.messages, asked.principal, asked.asides) == (tuple(messages), "me", ("a note",))
    assert asked.decision is decision
    assert guard.tally.snapshot().decisions[Verdict.BLOCK, Route.PROBE, Reason.PROBE_UNSAFE] == 1


async def test_a_disguise_of_a_scripted_text_has_its_outcome() -> None:
    guard = FakeGuard({"odd": Verdict.BLOCK})
    assert (await guard.check(user("o\u200bdd"))).is_blocking


@pytest.mark.usefixtures("host_loops")
def test_an_app_of_nemo_asks_the_fake_guard_in_the_place_of_its_own(
    make_rail_folder: Callable[..., Path], judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemoguardrails import LLMRails, RailsConfig  # noqa: PLC0415

    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    main = {"type": "main", "engine": "openai", "model": "gpt-4o-mini", "parameters": {"base_url": judge.base_url}}
    folder = make_rail_folder(policy="./no-policy", config={"models": [main]})
    with guarding_nemo(FakeGuard({"odd": "block"})) as guard:
        app = LLMRails(RailsConfig.from_path(str(folder)))
        said = [app.generate(messages=user(text))["content"] for text in ("plain", "odd")]
    assert said == ["the main LLM's answer", "I'm sorry, I can't respond to that."]
    assert judge.answers == 1
    assert isinstance(guard, FakeGuard)
    assert [asked.decision.verdict for asked in guard.asked] == [Verdict.ALLOW, Verdict.BLOCK]
