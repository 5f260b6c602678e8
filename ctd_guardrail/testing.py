"""Doubles for the tests of an app: a guard and an expert with scripted answers. They load no model.

The fake guard is the guard of this package around scripted scores. So histories, blank texts, content that is not
text, failure policies and shadow mode give the same decisions as in production. docs/write-your-own.md has examples.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast
from unittest import mock

import numpy as np

from ctd_guardrail.activations.scorer import Scored
from ctd_guardrail.activations.spec import ActivationSpec, Fingerprint
from ctd_guardrail.assembly.cascades import CascadeFactory
from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.assembly.observers import Keys
from ctd_guardrail.config.experts import PythonExpertConfig
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.decision import Decision, Mode, OnFailure, Reason, Verdict
from ctd_guardrail.errors import (
    ActivationUnavailableError,
    BreakerOpenError,
    CapStoreError,
    ExpertCapError,
    ExpertDisabledError,
    ExpertOverloadedError,
    ExpertTimeoutError,
    ExpertUnavailableError,
    ExpertVerdictError,
    NonTextError,
    OverloadedError,
    OverlongError,
)
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.policy.manifest import CalibrationRecord, Manifest, PerformanceRecord
from ctd_guardrail.policy.plan import Budget, plan
from ctd_guardrail.policy.store import CalibrationScores, Policy
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.text.conversation import Conversation
from ctd_guardrail.text.normalise import NORMALISER
from ctd_guardrail.text.refusals import Refusals

__all__ = ["Asked", "FakeExpert", "FakeGuard", "guarding_nemo"]

_TAU: Final = 0.5
_BAND: Final = 0.1
_DEADLINE_S: Final = 0.2
_ALPHA: Final = 0.1
_LAMBDA: Final = 0.95  # above the certified threshold, below the d of a delegated input
_DELTA: Final = 0.05
_NO_HASH: Final = "0" * 64
# Delegation values of the rows that the policy's budget is certified on. Scripted ones lie at their ends.
_CALIBRATION: Final = np.linspace(-1.0, 1.0, 101)

# p, d and the expert's score.
_SCORES: Final[dict[Reason, tuple[float, float, float]]] = {
    Reason.PROBE_SAFE: (0.0, -1.0, 0.0),
    Reason.PROBE_UNSAFE: (1.0, -1.0, 0.0),
    Reason.EXPERT_SAFE: (1.0, 1.0, 0.0),
    Reason.EXPERT_UNSAFE: (0.0, 1.0, 1.0),
    Reason.ABSTAINED: (_TAU, -1.0, 0.0),
}
_OF_THE_EXPERT: Final[dict[Reason, type[Exception]]] = {
    Reason.EXPERT_TIMEOUT: ExpertTimeoutError,
    Reason.EXPERT_UNAVAILABLE: ExpertUnavailableError,
    Reason.EXPERT_BAD_VERDICT: ExpertVerdictError,
    Reason.EXPERT_OVERLOADED: ExpertOverloadedError,
    Reason.EXPERT_DISABLED: ExpertDisabledError,
    Reason.BREAKER_OPEN: BreakerOpenError,
    Reason.CAP_EXHAUSTED: ExpertCapError,
    Reason.CAP_UNAVAILABLE: CapStoreError,
}
_OF_THE_BASE_MODEL: Final[dict[Reason, type[Exception]]] = {
    Reason.NON_TEXT: NonTextError,
    Reason.OVERLONG: OverlongError,
    Reason.OVERLOADED: OverloadedError,
    Reason.ENGINE_UNAVAILABLE: ActivationUnavailableError,
    Reason.INTERNAL_ERROR: RuntimeError,
}
_SCRIPTABLE: Final = {*_SCORES, *_OF_THE_EXPERT, *_OF_THE_BASE_MODEL, Reason.DEADLINE}
_REASON_OF: Final = {Verdict.ALLOW: Reason.PROBE_SAFE, Verdict.BLOCK: Reason.PROBE_UNSAFE}
_SPEC: Final = ActivationSpec(model="fake", layers=(1,))


class FakeExpert:
    """An :class:`~ctd_guardrail.Expert` with scripted answers.

    Example:
        >>> import asyncio
        >>> from ctd_guardrail import Conversation
        >>> expert = FakeExpert({"How do I build a bomb?": 0.9})
        >>> asyncio.run(expert.score(Conversation.from_text("How do I build a bomb?"))).p_unsafe
        0.9

    Args:
        answers: What it answers to the text of a conversation's last message: P(unsafe), a score, or an exception that
            it raises.
        default: Its answer to all other texts.
        identity: Its identity. Give that of a policy to run the policy with this expert.

    Attributes:
        identity: The argument of the same name.
        asked: The conversations that it was asked about, oldest first.
        is_closed: Whether it was closed.
    """

    def __init__(
        self,
        answers: Mapping[str, float | ExpertScore | Exception] | None = None,
        *,
        default: float | ExpertScore | Exception = 0.0,
        identity: str = "fake-expert",
    ) -> None:
        self._answers = {_last_text(Conversation.from_text(text)): answer for text, answer in (answers or {}).items()}
        self._default = default
        self.identity = identity
        self.asked: list[Conversation] = []
        self.is_closed = False

    async def score(self, conversation: Conversation) -> ExpertScore:
        """Return the scripted score, or raise the scripted exception."""
        self.asked.append(conversation)
        answer = self._answers.get(_last_text(conversation), self._default)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, ExpertScore) else ExpertScore(answer)

    async def aclose(self) -> None:
        """Note that it was closed."""
        self.is_closed = True


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to a fake guard.

    Attributes:
        messages: The messages.
        overrides: The settings that the request asked for; None: none.
        principal: As the caller gave it.
        asides: Texts beside the conversation.
        decision: The guard's decision.
    """

    messages: Sequence[Mapping[str, Any]]
    overrides: object
    principal: object
    asides: Sequence[str]
    decision: Decision


class FakeGuard(Guard):
    """A :class:`~ctd_guardrail.Guard` with scripted outcomes.

    Example:
        >>> import asyncio
        >>> guard = FakeGuard({"How do I build a bomb?": "block", "a slow one": "expert_timeout"})
        >>> decision = asyncio.run(guard.check([{"role": "user", "content": "How do I build a bomb?"}]))
        >>> decision.is_blocking, str(decision.reason)
        (True, 'probe_unsafe')

    Args:
        script: The outcome for the text of a turn: a verdict, or a reason, which may be that of a failure. The reasons
            ``blank``, ``bad_override`` and ``not_ready`` cannot be scripted: they come from the request or the host.
            A guard with a scripted ``deadline`` gives each request 0.2 seconds.
        default: The outcome for all other texts.
        on_failure: What to do with an input when the guard cannot do its work.
        mode: Whether verdicts count.

    Attributes:
        asked: The requests, oldest first.
        expert: The expert behind the guard.

    Raises:
        ValueError: An outcome is no verdict and no reason, or cannot be scripted.
    """

    def __init__(
        self,
        script: Mapping[str, Verdict | Reason | str] | None = None,
        *,
        default: Verdict | Reason | str = Verdict.ALLOW,
        on_failure: OnFailure = OnFailure.BLOCK,
        mode: Mode = Mode.ENFORCE,
    ) -> None:
        outcomes = {text: _reason(outcome) for text, outcome in (script or {}).items()}
        fallback = _reason(default)
        reasons = {fallback, *outcomes.values()}
        self.asked: list[Asked] = []
        self.expert = FakeExpert(
            {text: _answer(reason) for text, reason in outcomes.items()}, default=_answer(fallback)
        )
        deadline_s = _DEADLINE_S if Reason.DEADLINE in reasons else 30.0
        section = PythonExpertConfig(type="python", factory=f"{__name__}:FakeExpert", timeout_s=deadline_s / 2)
        config = CtdConfig(
            policy=Path("no-policy"), expert=section, on_failure=on_failure, mode=mode, deadline_s=deadline_s
        )
        policy, budget = _policy(self.expert.identity, abstains=Reason.ABSTAINED in reasons), Budget()
        # Guards of a process remember decisions together. A test's guard must not remember those of another test.
        self._runtime = Runtime()
        weakref.finalize(self, self._runtime.close)
        factory = CascadeFactory(
            config=config,
            policy=policy,
            budget=budget,
            plan=plan(policy, budget),
            scorer=_Scorer(outcomes, fallback),
            probes=cast("Any", None),  # the scorer has scores and no activations
            keys=Keys.of(config),
            refusals=Refusals(),
            paced=None,
            watch=None,
            memory=self._runtime.memory,
            runtime=self._runtime,
        )
        super().__init__(factory, {None: BoundedExpert(self.expert)}, folder=Path("no-folder"))

    async def check(
        self,
        messages: Iterable[Mapping[str, Any]],
        overrides: object = None,
        *,
        principal: object = None,
        asides: Iterable[str] = (),
    ) -> Decision:
        """Return the scripted decision and record the request; see :meth:`Guard.check`."""
        kept, texts = tuple(messages), tuple(asides)
        decision = await super().check(kept, overrides, principal=principal, asides=texts)
        self.asked.append(Asked(kept, overrides, principal, texts, decision))
        return decision


@contextmanager
def guarding_nemo(guard: Guard) -> Iterator[Guard]:
    """Give every NeMo Guardrails app that is built in the block this guard, whatever policy its configuration names.

    Args:
        guard: The guard, for example a :class:`FakeGuard`.

    Yields:
        The guard.
    """
    with ExitStack() as patches:
        for module in ("setup", "iorails"):
            patches.enter_context(mock.patch(f"ctd_guardrail.nemo.{module}.guard_for", return_value=guard))
        yield guard


class _Scorer:
    """Gives the scripted scores of a unit's last text."""

    def __init__(self, outcomes: Mapping[str, Reason], default: Reason) -> None:
        self._outcomes = {_last_text(Conversation.from_text(text)): reason for text, reason in outcomes.items()}
        self._default = default

    @property
    def spec(self) -> ActivationSpec:
        return _SPEC

    async def run(self, conversation: Conversation, head: object) -> Scored:  # noqa: ARG002  # the protocol's
        reason = self._outcomes.get(_last_text(conversation), self._default)
        if reason is Reason.DEADLINE:
            await asyncio.Event().wait()
        if reason in _OF_THE_BASE_MODEL:
            raise _OF_THE_BASE_MODEL[reason]("a scripted failure")
        # A failure of the expert begins with a delegated input.
        p, d, _ = _SCORES.get(reason, (1.0, 1.0, 0.0))
        return Scored(np.array([[p, d]], dtype=np.float32), queue_ms=0.0, forward_ms=0.0)


def _policy(expert: str, *, abstains: bool) -> Policy:
    """Return a policy without probes. With an abstain band, its threshold is fixed."""
    performance = PerformanceRecord(risks=(), threshold=_LAMBDA, band=_BAND) if abstains else None
    manifest = Manifest(
        created_at=datetime.now(UTC),
        versions={},
        activations=_SPEC,
        fingerprint=Fingerprint(
            architecture="fake",
            hidden_size=1,
            window=1,
            weights_sha256=_NO_HASH,
            tokenizer_sha256=_NO_HASH,
            template_sha256=_NO_HASH,
        ),
        normaliser=NORMALISER,
        decision_threshold=_TAU,
        expert=expert,
        calibration=CalibrationRecord(rows=_CALIBRATION.size, alpha=_ALPHA, delta=_DELTA, seed=0),
        performance=performance,
        data=[],
        training={},
        evaluation={},
        tensors_sha256=_NO_HASH,
        pins_sha256=_NO_HASH,
    )
    return Policy(manifest, {}, CalibrationScores.from_rows(d=_CALIBRATION, p=np.zeros(_CALIBRATION.size)))


def _last_text(conversation: Conversation) -> str:
    return conversation.messages[-1].content if conversation.messages else ""


def _reason(outcome: Verdict | Reason | str) -> Reason:
    if outcome in set(Verdict):
        return _REASON_OF[Verdict(outcome)]
    reason = Reason(outcome)
    if reason not in _SCRIPTABLE:
        raise ValueError(f"{reason.value} comes from the request or the host and cannot be scripted")
    return reason


def _answer(reason: Reason) -> float | Exception:
    if reason in _OF_THE_EXPERT:
        return _OF_THE_EXPERT[reason]("a scripted failure")
    return _SCORES.get(reason, (0.0, 0.0, 0.0))[2]
