"""Cause by cause: which failure policy holds, and that nothing overrides it."""

import asyncio
from typing import Any, Final

import numpy as np
import pytest

from ctd_guardrail import errors
from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.cascade.on_failure import _REASONS, reason_of
from ctd_guardrail.config.on_failure import OnFailureByCause, on_failure_for
from ctd_guardrail.config.section import CtdConfig, parse_section
from ctd_guardrail.decision import OnFailure, Reason, Verdict
from ctd_guardrail.errors import (
    ActivationError,
    ActivationUnavailableError,
    BreakerOpenError,
    CapStoreError,
    ConfigError,
    ExpertCapError,
    ExpertDisabledError,
    ExpertError,
    ExpertOverloadedError,
    ExpertTimeoutError,
    ExpertUnavailableError,
    ExpertVerdictError,
    InputError,
    NonTextError,
    OverloadedError,
)
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.text.conversation import Conversation
from tests.support.cascades import CountedCascade, make_cascade
from tests.support.internals import put_scorer

SECTION = {"policy": "p", "expert": {"type": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "judge"}}
EXPERT_CAUSES = {
    Reason.EXPERT_TIMEOUT: ExpertTimeoutError("late"),
    Reason.EXPERT_UNAVAILABLE: ExpertUnavailableError("down"),
    Reason.EXPERT_BAD_VERDICT: ExpertVerdictError("odd"),
    Reason.EXPERT_OVERLOADED: ExpertOverloadedError("busy"),
    Reason.EXPERT_DISABLED: ExpertDisabledError("off"),
    Reason.BREAKER_OPEN: BreakerOpenError("open"),
    Reason.CAP_EXHAUSTED: ExpertCapError("used up"),
    Reason.CAP_UNAVAILABLE: CapStoreError("down"),
    Reason.INTERNAL_ERROR: RuntimeError("bug"),
}
# The probe has not run.
MODEL_CAUSES = {
    Reason.OVERLOADED: OverloadedError("full"),
    Reason.ENGINE_UNAVAILABLE: ActivationUnavailableError("down"),
}
CAUSES = [*EXPERT_CAUSES, *MODEL_CAUSES, Reason.DEADLINE]
NEVER = [Reason.NON_TEXT, Reason.OVERLONG, Reason.BAD_OVERRIDE, Reason.NOT_READY]
# These share the reason of the line of their base.
REASON_OF_THE_BASE: Final = {ExpertUnavailableError: Reason.EXPERT_UNAVAILABLE, NonTextError: Reason.NON_TEXT}
UNSURE = [{"role": "user", "content": "hello"}]


class Engine:
    spec = ActivationSpec(model="model", layers=(1,))

    def __init__(self, p: float = 0.1, error: BaseException | None = None) -> None:
        self.p, self.error = p, error

    async def run(self, conversation: Conversation, head: Any) -> Scored:
        if self.error is not None:
            raise self.error
        return Scored(np.array([(self.p, 1.0)]), 0.0, 0.0)


class Judge:
    identity = "judge"

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    async def score(self, conversation: Conversation) -> ExpertScore:
        if self.error is None:
            await asyncio.sleep(3600)
        assert self.error is not None
        raise self.error

    async def aclose(self) -> None:
        return None


def cascade(cause: Reason, on_failure: OnFailure | OnFailureByCause, p: float = 0.1) -> CountedCascade:
    engine = Engine(p, MODEL_CAUSES.get(cause))
    return make_cascade(
        scorer=engine,
        probes=lambda ragged: ragged.values,
        expert=Judge(EXPERT_CAUSES.get(cause)),
        on_failure=on_failure,
        deadline_s=0.02 if cause is Reason.DEADLINE else 60.0,
    )


def test_every_cause_has_its_key_and_no_key_is_without_a_cause() -> None:
    assert {reason.value for reason in Reason if reason.is_failure} == {
        *OnFailureByCause.model_fields,
        *(reason.value for reason in NEVER),
    } - {"default"}


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("policy", list(OnFailure))
async def test_a_cause_has_its_own_policy_and_all_others_the_default(cause: Reason, policy: OnFailure) -> None:
    other = OnFailure.BLOCK if policy is OnFailure.ALLOW else OnFailure.ALLOW
    named = OnFailureByCause.model_validate({"default": other, cause.value: policy})
    rest = OnFailureByCause.model_validate(
        {"default": policy} | {each.value: other for each in CAUSES if each != cause}
    )
    verdicts = {OnFailure.BLOCK: "block", OnFailure.ALLOW: "allow", OnFailure.PROBE: "allow"}
    if cause in MODEL_CAUSES:
        verdicts[OnFailure.PROBE] = "block"
    for stated in (policy, named, rest):
        guard = cascade(cause, stated)
        decision = await guard.check(UNSURE)
        assert (decision.reason, decision.on_failure, decision.verdict) == (cause, policy, verdicts[policy])
        assert decision.is_bypass == (policy is not OnFailure.BLOCK)
        bypasses = guard.tally.snapshot().bypasses
        assert bypasses == ({(cause, policy, decision.verdict): 1} if decision.is_bypass else {})


async def test_the_probes_own_verdict_blocks_what_it_finds_unsafe() -> None:
    decision = await cascade(Reason.BREAKER_OPEN, OnFailure.PROBE, p=0.9).check(UNSURE)
    assert (decision.verdict, decision.on_failure) == (Verdict.BLOCK, OnFailure.PROBE)


@pytest.mark.parametrize("reason", NEVER)
def test_what_the_sender_chooses_is_no_failure_of_the_guard(reason: Reason) -> None:
    assert on_failure_for(OnFailure.ALLOW, reason) is None
    assert on_failure_for(OnFailureByCause(default=OnFailure.ALLOW), reason) is None


@pytest.mark.parametrize("stage", ["probe", "expert"])
async def test_the_deadline_is_one_for_all_and_cancels_nobody_elses_request(stage: str) -> None:
    class Slow(Engine):
        async def run(self, conversation: Conversation, head: Any) -> Scored:
            await asyncio.sleep(3600)
            raise AssertionError

    guard = cascade(Reason.DEADLINE, OnFailure.PROBE)
    if stage == "probe":
        put_scorer(guard, Slow())
    task = asyncio.create_task(guard.check(UNSURE))
    decision = await task
    assert (decision.reason, task.cancelling()) == (Reason.DEADLINE, 0)
    assert decision.verdict == ("block" if stage == "probe" else "allow")
    assert decision.route == ("probe" if stage == "probe" else "expert")
    assert guard.tally.snapshot().expert_attempts == (stage == "expert")


async def test_the_deadline_is_not_given_to_each_turn_anew() -> None:
    guard = cascade(Reason.DEADLINE, OnFailure.ALLOW)
    turns = [{"role": role, "content": f"turn {i}"} for i in range(50) for role in ("user", "assistant")]
    start = asyncio.get_running_loop().time()
    await guard.check([*turns, *UNSURE])
    assert guard.tally.snapshot().decisions
    assert asyncio.get_running_loop().time() - start < 50 * 0.02


async def test_a_request_that_is_cancelled_at_its_deadline_stays_cancelled() -> None:
    guard = cascade(Reason.DEADLINE, OnFailure.ALLOW)
    for _ in range(20):
        task = asyncio.create_task(guard.check(UNSURE))
        await asyncio.sleep(0.019)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError) or outcome.reason is Reason.DEADLINE


async def test_an_earlier_cancellation_that_was_survived_does_not_let_an_inner_one_through() -> None:
    guard = cascade(Reason.INTERNAL_ERROR, OnFailure.BLOCK)
    put_scorer(guard, Engine(error=asyncio.CancelledError()))

    async def stubborn() -> Any:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return await guard.check(UNSURE)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    task.cancel()
    assert (await task).reason is Reason.INTERNAL_ERROR


def parsed(**changes: Any) -> CtdConfig:
    return parse_section(SECTION | changes)


def test_the_file_states_one_policy_or_one_for_each_cause() -> None:
    assert parsed().on_failure is OnFailure.BLOCK
    assert parsed(on_failure="probe").on_failure is OnFailure.PROBE
    by_cause = parsed(on_failure={"default": "probe", "expert_bad_verdict": "block"}).on_failure
    assert on_failure_for(by_cause, Reason.EXPERT_BAD_VERDICT) is OnFailure.BLOCK
    assert on_failure_for(by_cause, Reason.BREAKER_OPEN) is OnFailure.PROBE
    assert on_failure_for(parsed(on_failure={"overloaded": "allow"}).on_failure, Reason.DEADLINE) is OnFailure.BLOCK


@pytest.mark.parametrize(
    ("changes", "key", "hint"),
    [
        ({"on_failure": "open"}, "on_failure", ""),
        ({"on_failure": {"default": "open"}}, "on_failure.default", ""),
        ({"on_failure": {"expert_timout": "probe"}}, "on_failure.expert_timout", "Did you mean `expert_timeout`?"),
        ({"on_failure": {"overlong": "allow"}}, "on_failure.overlong", "Did you mean"),
        ({"on_failure": ["block"]}, "on_failure", ""),
        ({"cap": {"per_s": 60}}, "cap", "Set `calls`"),
        ({"cap": [{"calls": 1, "per_s": 60}, {"calls": 1, "per": 60}]}, "cap.1.per_s", "Add `per_s"),
        ({"cap": {"tokens": 1, "per_s": 60, "burst": 2}}, "cap", "Set `calls`"),
        ({"cap": {"calls": 1, "per_s": 60, "per": "principal"}}, "", "Say in `principal`"),
        ({"principal": {"variable": "tenant"}}, "", "Say in `principal`"),
        ({"principal": {}}, "principal", "`header`"),
        ({"store": {"url_env": "REDIS_URL"}}, "", "Add `cap`"),
        ({"cap": {"calls": 1, "per_s": 60}, "store": {"url": "redis://x"}}, "store.url", "Did you mean"),
        ({"deadline_s": 10}, "", "Set deadline_s above 10"),
        ({"deadline_s": 0}, "deadline_s", ""),
        ({"breaker": {"failures": 3}}, "breaker", "Write `breaker: 5`"),
        ({"breaker": 0}, "breaker", ""),
        ({"monitor": {"save_every_s": 3}}, "monitor.save_every_s", "Known keys here: audit_share"),
        ({"rollout": {"enforce_share": 0.5, "key_env": "KEY", "by": "principal"}}, "", "Say in `principal`"),
        ({"expert_enabled": "sometimes"}, "expert_enabled", ""),
        ({"expert_attempts": 9}, "expert_attempts", ""),
        ({"expert": {"type": "rail", "flow": "f"}, "expert_attempts": 2}, "", "retries of the model"),
    ],
    ids=str,
)
def test_a_mistake_around_failures_and_spend_is_named_with_key_and_hint(
    changes: dict[str, Any], key: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(**changes)
    assert caught.value.key == ".".join(["custom_data.ctd", *([key] if key else [])])
    assert hint in caught.value.hint


@pytest.mark.parametrize("kind", ["openai", "python"])
def test_another_attempt_is_for_the_kinds_of_expert_that_the_description_names(kind: str) -> None:
    python = {"expert": {"type": "python", "factory": "my_expert:make"}}
    assert parsed(expert_attempts=2, **(python if kind == "python" else {})).expert_attempts == 2
    assert f"`{kind}`" in (CtdConfig.model_fields["expert_attempts"].description or "")


def _leaves(kind: type[BaseException]) -> list[type[BaseException]]:
    """Return the classes of errors.py below a class that are no base of another."""
    below = [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    return [leaf for each in below for leaf in _leaves(each)] if below else [kind]


def test_every_kind_of_error_has_a_reason_of_its_own_or_the_listed_one_of_its_base() -> None:
    leaves = [leaf for base in (ExpertError, ActivationError, InputError) for leaf in _leaves(base)]
    assert len(leaves) > 10
    own = dict(_REASONS)
    assert {leaf for leaf in leaves if leaf not in own} == set(REASON_OF_THE_BASE)
    for leaf in leaves:
        assert reason_of(leaf("a problem")) is (own.get(leaf) or REASON_OF_THE_BASE[leaf])
