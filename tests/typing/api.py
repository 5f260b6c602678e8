"""Every public name as a user writes it. mypy reads this file; nothing runs it."""

from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from ctd_guardrail import (
    ActivationError,
    ActivationSource,
    ActivationSpec,
    ActivationUnavailableError,
    BreakerOpenError,
    CapStoreError,
    ConfigError,
    Conversation,
    CtdError,
    DataError,
    Decision,
    DependencyError,
    Expert,
    ExpertCapError,
    ExpertDisabledError,
    ExpertError,
    ExpertNotAskedError,
    ExpertOverloadedError,
    ExpertScore,
    ExpertTimeoutError,
    ExpertUnavailableError,
    ExpertVerdictError,
    Fingerprint,
    Guard,
    HostError,
    InfeasibleBudgetError,
    InputError,
    Message,
    Mode,
    NonTextError,
    OnFailure,
    OverloadedError,
    OverlongError,
    OverrideError,
    PolicyError,
    PolicyFormatError,
    PolicyIntegrityError,
    PolicyLockedError,
    PolicyMismatchError,
    Ragged,
    Reason,
    Route,
    StoreError,
    Timings,
    Verdict,
    __version__,
    load_guard,
)
from ctd_guardrail.budget import (
    BudgetUnit,
    CalibrationScores,
    Certificate,
    Choice,
    Costs,
    Criterion,
    Guarantee,
    Method,
    Policy,
    Status,
    TurnScores,
    best_threshold,
    certify,
    max_exceedances,
    min_alpha,
    min_rows,
    read_policy,
)
from ctd_guardrail.testing import Asked, FakeExpert, FakeGuard, guarding_nemo

assert_type(__version__, str)


class MyExpert:
    """An expert of a user, who inherits from nothing."""

    identity = "mine:v1"

    async def score(self, conversation: Conversation) -> ExpertScore:
        last: Message = conversation.messages[-1]
        assert_type(last.content, str)
        if last.content == "late":
            raise ExpertTimeoutError("no answer", hint="Ask again")
        return ExpertScore(0.5, attempts=1, tokens=None)

    async def aclose(self) -> None:
        return None


class MySource:
    """An activation source of a user."""

    def __init__(self, spec: ActivationSpec) -> None:
        self.spec = spec
        self.fingerprint = Fingerprint(
            architecture="Mine",
            hidden_size=8,
            window=16,
            weights_sha256="0" * 64,
            tokenizer_sha256="0" * 64,
            template_sha256="0" * 64,
        )

    def tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...], ...]:
        return ((len(conversation.plain_text()),),)

    def activations(self, windows: Sequence[tuple[int, ...]]) -> Ragged:
        raise ActivationUnavailableError(f"{len(windows)} windows", hint="Try again")


def make_expert(words: list[str]) -> Expert:
    return MyExpert() if words else FakeExpert(default=0.1)


def make_source(spec: ActivationSpec) -> ActivationSource:
    return MySource(spec)


def read(decision: Decision) -> str:
    assert_type(decision.verdict, Verdict)
    assert_type(decision.route, Route)
    assert_type(decision.reason, Reason)
    assert_type(decision.mode, Mode)
    assert_type(decision.timings, Timings)
    assert_type(decision.on_failure, OnFailure | None)
    assert_type(decision.p, float | None)
    assert_type(decision.is_blocking, bool)
    return decision.reason.value


def explain(error: CtdError) -> str:
    text = str(error)
    match error:
        case ConfigError() | DataError():
            text = f"{error.file}: {error.problem}"
        case InfeasibleBudgetError():
            text = f"alpha of at least {error.alpha_min}, or {error.n_min} rows"
        case PolicyFormatError() | PolicyIntegrityError() | PolicyLockedError() | PolicyMismatchError() | PolicyError():
            text = "the policy"
        case NonTextError() | OverlongError() | InputError():
            text = "the input"
        case OverloadedError() | ActivationUnavailableError() | ActivationError():
            text = "the base model"
        case BreakerOpenError() | CapStoreError() | ExpertCapError() | ExpertDisabledError() | ExpertOverloadedError():
            text = "the expert was not asked"
        case ExpertNotAskedError() | ExpertTimeoutError() | ExpertUnavailableError() | ExpertVerdictError():
            text = "the expert"
        case ExpertError() | OverrideError() | HostError() | DependencyError() | StoreError():
            text = error.hint
    return text


def budget(folder: Path, scores: NDArray[np.float64]) -> float:
    policy: Policy = read_policy(folder)
    calibration: CalibrationScores = policy.calibration
    certificate: Certificate = certify(policy.scores, 0.1, 0.05, guarantee=Guarantee.NEXT, horizon=1000)
    if certificate.status is Status.INFEASIBLE:
        return min_alpha(certificate.n, 0.05)
    assert_type(policy.scores, TurnScores)
    assert_type(certificate.method, Method)
    certify(scores, 1.5, 0.05, conversation=["a", "a", "b"], unit=BudgetUnit.CONVERSATION, max_turns=20)
    assert_type(min_rows(0.1, 0.05), int)
    assert_type(max_exceedances(1000, 0.1, 0.05), int)
    choice: Choice = best_threshold(
        certify([0.1, 0.2, 0.3], 0.5, 0.5),
        Criterion.COST,
        d=calibration.d,
        probe=calibration.p,
        expert=scores,
        label=scores,
        costs=Costs(missed=10.0),
    )
    return choice.threshold


async def serve(folder: Path) -> str:
    async with load_guard(folder, in_service=True) as guard:
        assert_type(guard, Guard)
        decision = await guard.check([{"role": "user", "content": "a question"}], {"alpha": 0.05}, asides=["a note"])
        guard.note_answer("an answer")
        return (
            f"{read(decision)} at lambda {guard.plan.certificate.threshold}, policy of {guard.policy.manifest.expert}"
        )


async def my_test() -> None:
    async with FakeGuard({"odd": Verdict.BLOCK, "late": Reason.EXPERT_TIMEOUT}, on_failure=OnFailure.ALLOW) as guard:
        decision = await guard.check([{"role": "user", "content": "odd"}], principal="me")
        asked: Asked = guard.asked[0]
        assert_type(asked.decision, Decision)
        assert_type(guard.expert.asked, list[Conversation])
        with guarding_nemo(guard) as same:
            await same.aclose()
    read(decision)
