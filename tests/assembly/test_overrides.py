"""Settings of single requests: only where the operator allows it, and never a silent fallback."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctd_guardrail.assembly.folder import read_folder
from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.assembly.overrides import read_overrides
from ctd_guardrail.assembly.prepared import load_guard
from ctd_guardrail.config.override_bounds import Bounds
from ctd_guardrail.decision import Mode, OnFailure, Reason, Verdict
from ctd_guardrail.errors import ConfigError, OverrideError
from tests.support.internals import cascade_of

ODD = [{"role": "user", "content": "an odd question"}]
WIDE = {"alpha": 0.9, "delta": 0.9, "mode": "shadow", "on_failure": "allow"}
EVERYTHING = ["alpha", "delta", "guarantee", "horizon", "mode", "on_failure", "max_expert_calls"]


BOUNDS = Bounds(alpha=0.2, delta=0.1, mode=Mode.ENFORCE, on_failure=OnFailure.BLOCK)


def cascade_for(folder: Path) -> Guard:
    return load_guard(folder)


async def test_a_request_gets_the_threshold_of_its_own_budget(make_rail_folder: Callable[..., Path]) -> None:
    cascade = cascade_for(make_rail_folder(allow_overrides=EVERYTHING, override_bounds=WIDE))
    thresholds = [(await cascade._get({"alpha": alpha})).settings.rule.threshold for alpha in (0.05, 0.2, 0.5)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds)) == 3
    assert thresholds[1] == cascade_of(cascade).settings.rule.threshold


async def test_a_budget_that_cannot_be_certified_blocks(make_rail_folder: Callable[..., Path], judge: Any) -> None:
    cascade = cascade_for(make_rail_folder(allow_overrides=EVERYTHING))
    assert (await cascade.check(ODD, {"alpha": 0.001})).reason is Reason.BAD_OVERRIDE
    assert judge.calls == 0


async def test_calls_of_one_request_are_capped_under_its_own_failure_policy(
    make_rail_folder: Callable[..., Path], judge: Any
) -> None:
    cascade = cascade_for(make_rail_folder(allow_overrides=EVERYTHING, override_bounds=WIDE))
    blocked = await cascade.check(ODD, {"max_expert_calls": 0})
    allowed = await cascade.check(ODD, {"max_expert_calls": 0, "on_failure": "allow"})
    asked = await cascade.check(ODD, {"max_expert_calls": 1})
    assert [(d.verdict, d.reason) for d in (blocked, allowed, asked)] == [
        (Verdict.BLOCK, Reason.CAP_EXHAUSTED),
        (Verdict.ALLOW, Reason.CAP_EXHAUSTED),
        (Verdict.ALLOW, Reason.EXPERT_SAFE),
    ]
    assert judge.calls == 1
    assert cascade.tally.snapshot().expert_attempts == 1


async def test_a_request_may_choose_another_way_to_the_same_expert(
    make_rail_folder: Callable[..., Path], judge: Any
) -> None:
    expert = {"type": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "judge"}
    ways = {"spare": {"base_url": judge.base_url}}
    folder = make_rail_folder(expert=expert, experts=ways, allow_overrides=["expert"])
    cascade = cascade_for(folder)
    assert (await cascade.check(ODD)).reason is Reason.EXPERT_UNAVAILABLE
    assert (await cascade.check(ODD, {"expert": "spare"})).reason is Reason.EXPERT_SAFE
    assert (await cascade.check(ODD, {"expert": "another"})).reason is Reason.BAD_OVERRIDE
    await cascade.aclose()


@pytest.mark.parametrize(
    ("changes", "key", "hint"),
    [
        ({"experts": {"other": {"base_url": "http://x", "model": "other"}}}, "experts.other.model", "Known keys here"),
        ({"expert": {"type": "rail", "flow": "f"}, "experts": {"other": {"base_url": "http://x"}}}, "", "Leave"),
    ],
)
def test_a_named_expert_is_the_one_that_was_calibrated_at_another_address(
    make_rail_folder: Callable[..., Path], changes: dict[str, Any], key: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_folder(make_rail_folder(allow_overrides=["expert"], **changes))
    assert caught.value.key == f"custom_data.ctd.{key}".rstrip(".")
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "overrides",
    [
        "alpha",
        ["alpha"],
        5,
        {"alpha": 0},
        {"alpha": "much"},
        {"alpha": float("nan")},
        {"alfa": 0.1},
        {1: 2},
        {"policy": "elsewhere"},
        {"on_failure": "open"},
        {"mode": "off"},
        {"expert": "main"},
        {"expert": {"type": "openai"}},
        {"guarantee": "next"},
        {"horizon": 10},
        {"max_expert_calls": -1},
        {"allow_overrides": ["expert"]},
    ],
    ids=str,
)
async def test_what_is_wrong_blocks_whatever_the_failure_policy(
    make_rail_folder: Callable[..., Path], judge: Any, overrides: object
) -> None:
    cascade = cascade_for(make_rail_folder(allow_overrides=EVERYTHING, on_failure="allow"))
    decision = await cascade.check(ODD, overrides)
    assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.BAD_OVERRIDE)
    assert decision.reason.is_failure
    assert judge.calls == 0
    assert cascade.tally.snapshot().total == 1


async def test_nothing_may_be_overridden_by_default(make_rail_folder: Callable[..., Path]) -> None:
    cascade = cascade_for(make_rail_folder())
    for overrides in ({"alpha": 0.1}, {"on_failure": "allow"}, {"mode": "shadow"}):
        assert (await cascade.check(ODD, overrides)).reason is Reason.BAD_OVERRIDE
    assert (await cascade.check(ODD, {})).reason is Reason.EXPERT_SAFE


def test_only_named_settings_are_allowed(make_rail_folder: Callable[..., Path]) -> None:
    config = read_folder(make_rail_folder(allow_overrides=["alpha"])).config
    assert read_overrides({"alpha": 0.1}, config, BOUNDS).alpha == 0.1
    with pytest.raises(OverrideError, match="delta may not be overridden"):
        read_overrides({"alpha": 0.1, "delta": 0.1}, config, BOUNDS)


async def test_a_bug_or_an_inner_cancellation_blocks(
    make_rail_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade = cascade_for(make_rail_folder(allow_overrides=EVERYTHING, on_failure="allow"))
    for error in (asyncio.CancelledError, ZeroDivisionError):
        monkeypatch.setattr(cascade, "_get", _raising(error))
        decision = await cascade.check(ODD, {"alpha": 0.1})
        assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.INTERNAL_ERROR)


async def test_an_earlier_cancellation_that_was_survived_does_not_let_an_inner_one_through(
    make_rail_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = cascade_for(make_rail_folder(allow_overrides=EVERYTHING, on_failure="allow"))
    monkeypatch.setattr(guard, "_get", _raising(asyncio.CancelledError))

    async def survive() -> Any:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return await guard.check(ODD, {"alpha": 0.1})

    task = asyncio.create_task(survive())
    await asyncio.sleep(0)
    task.cancel()
    decision = await task
    assert (decision.verdict, decision.reason) == (Verdict.BLOCK, Reason.INTERNAL_ERROR)


async def test_the_callers_cancellation_passes_while_its_settings_are_prepared(
    make_rail_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = cascade_for(make_rail_folder(allow_overrides=EVERYTHING, on_failure="allow"))
    monkeypatch.setattr(guard, "_get", lambda raw: asyncio.Event().wait())
    task = asyncio.create_task(guard.check(ODD, {"alpha": 0.1}))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def _raising(error: type[BaseException]) -> Callable[..., Any]:
    async def fail(*arguments: object) -> None:
        raise error

    return fail


async def test_plans_are_kept_and_bounded(make_rail_folder: Callable[..., Path]) -> None:
    cascade = cascade_for(make_rail_folder(allow_overrides=["alpha"]))
    for i in range(200):
        await cascade.check([], {"alpha": 0.1 + i / 2000})
    assert len(cascade._overridden) == 64
    kept = cascade._overridden.get(read_overrides({"alpha": 0.1 + 199 / 2000}, cascade.config, BOUNDS))
    assert kept is await cascade._get({"alpha": 0.1 + 199 / 2000})
    assert cascade.tally.snapshot().total == 200


async def test_one_cap_holds_for_all_guards_of_a_configuration(
    make_rail_folder: Callable[..., Path], judge: Any
) -> None:
    folder = make_rail_folder(cap={"calls": 3, "per_s": 3600}, on_failure="allow")
    guards = [cascade_for(folder), cascade_for(folder)]
    decisions = [
        await guards[i % 2].check([{"role": "user", "content": f"an odd question{' ' * i}"}]) for i in range(8)
    ]
    assert judge.calls == 3
    assert [d.reason for d in decisions].count(Reason.CAP_EXHAUSTED) == 5
    assert sum(guard.tally.snapshot().expert_attempts for guard in guards) == 3


@pytest.mark.parametrize("changes", [{"allow_overrides": ["expert"]}, {"experts": {"a": {"base_url": "http://x"}}}])
def test_named_experts_and_the_right_to_choose_them_go_together(
    make_rail_folder: Callable[..., Path], changes: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="go together"):
        read_folder(make_rail_folder(**changes))


# What is configured, what a request asks for, and whether it may: `make_rail_folder` sets alpha 0.2 and delta 0.1.
BOUNDED: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({}, {"alpha": 0.2}, True),
    ({}, {"alpha": 0.15}, True),
    ({}, {"alpha": 0.2001}, False),
    ({}, {"alpha": 0.99}, False),
    ({"override_bounds": {"alpha": 0.3}}, {"alpha": 0.3}, True),
    ({"override_bounds": {"alpha": 0.3}}, {"alpha": 0.31}, False),
    ({"alpha": None}, {"alpha": 0.2}, True),  # the policy's
    ({"alpha": None}, {"alpha": 0.21}, False),
    ({}, {"delta": 0.05}, True),
    ({}, {"delta": 0.11}, False),
    ({"delta": None}, {"delta": 0.11}, False),
    ({"override_bounds": {"delta": 0.2}}, {"delta": 0.2}, True),
    ({}, {"mode": "enforce"}, True),
    ({}, {"mode": "shadow"}, False),
    ({"mode": "shadow"}, {"mode": "shadow"}, True),
    ({"mode": "shadow"}, {"mode": "enforce"}, True),
    ({"override_bounds": {"mode": "shadow"}}, {"mode": "shadow"}, True),
    ({}, {"on_failure": "block"}, True),
    ({}, {"on_failure": "probe"}, False),
    ({}, {"on_failure": "allow"}, False),
    ({"on_failure": "probe"}, {"on_failure": "probe"}, True),
    ({"on_failure": "probe"}, {"on_failure": "allow"}, False),
    ({"on_failure": "allow"}, {"on_failure": "probe"}, True),
    ({"on_failure": {"default": "allow", "deadline": "probe"}}, {"on_failure": "probe"}, True),
    ({"on_failure": {"default": "allow", "deadline": "probe"}}, {"on_failure": "allow"}, False),
    ({"on_failure": {"default": "block", "deadline": "allow"}}, {"on_failure": "probe"}, False),
    ({"override_bounds": {"on_failure": "probe"}}, {"on_failure": "probe"}, True),
    ({"override_bounds": {"on_failure": "probe"}}, {"on_failure": "allow"}, False),
    ({}, {"max_expert_calls": 1000}, True),
    ({}, {"guarantee": "simultaneous"}, True),
    ({}, {"guarantee": "next", "horizon": 10_000}, True),
    ({}, {"guarantee": "expected"}, False),
    ({}, {"guarantee": "expected", "alpha": 0.1}, True),
    ({"override_bounds": {"alpha": 0.3}}, {"guarantee": "expected"}, True),
    ({"guarantee": "simultaneous"}, {"guarantee": "exact"}, False),
    ({"guarantee": "next", "horizon": 100}, {"horizon": 50}, True),
    ({"guarantee": "next", "horizon": 100}, {"horizon": 100_000}, False),
]


@pytest.mark.parametrize(("changes", "asked", "is_allowed"), BOUNDED, ids=str)
async def test_a_request_moves_a_setting_only_towards_closed_and_cheap(
    make_rail_folder: Callable[..., Path], *, changes: dict[str, Any], asked: dict[str, Any], is_allowed: bool
) -> None:
    cascade = cascade_for(make_rail_folder(allow_overrides=EVERYTHING, **changes))
    decision = await cascade.check([{"role": "user", "content": "a plain question"}], asked)
    assert (decision.reason is not Reason.BAD_OVERRIDE) is is_allowed
    if not is_allowed:
        assert (decision.verdict, cascade.tally.snapshot().total) == (Verdict.BLOCK, 1)


@pytest.mark.parametrize("bounds", [{"alpha": 0.3}, {"mode": "shadow"}, {"on_failure": "allow"}], ids=str)
def test_a_bound_belongs_to_a_setting_that_may_change(
    make_rail_folder: Callable[..., Path], bounds: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="`allow_overrides` does not"):
        read_folder(make_rail_folder(allow_overrides=["delta"], override_bounds=bounds))
