"""Calibrate-Then-Delegate for one input (arXiv 2604.14251, algorithm 1).

Activations, both probes, the threshold, and the expert only where d(x) > lambda. Nothing escapes
:meth:`Cascade.check` but a decision: an exception in an action would be logged by the host together with the user's
text, and could open the gate.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from ctd_guardrail.conversation import Conversation
from ctd_guardrail.decision import Decision, FailurePolicy, Reason, Route, Timings, Verdict
from ctd_guardrail.errors import (
    ActivationError,
    ExpertCapError,
    ExpertError,
    ExpertTimeoutError,
    ExpertUnavailableError,
    ExpertVerdictError,
    InputError,
    NonTextError,
    OverloadedError,
    OverlongError,
)
from ctd_guardrail.experts.capped import CappedExpert, countdown
from ctd_guardrail.experts.protocol import Expert
from ctd_guardrail.policy.rule import DelegationRule
from ctd_guardrail.probes.merge import Merge
from ctd_guardrail.probes.windows import over_windows
from ctd_guardrail.tally import Tally

if TYPE_CHECKING:  # torch stays out of the import of the package
    from ctd_guardrail.activations.engine import ActivationEngine, Head

__all__ = ["Cascade"]

log = logging.getLogger(__name__)

_REASONS: Final[tuple[tuple[type[BaseException], Reason], ...]] = (
    (ExpertCapError, Reason.CAP_EXHAUSTED),
    (ExpertTimeoutError, Reason.EXPERT_TIMEOUT),
    (ExpertUnavailableError, Reason.EXPERT_UNAVAILABLE),
    (ExpertVerdictError, Reason.EXPERT_BAD_VERDICT),
    (ExpertError, Reason.EXPERT_UNAVAILABLE),
    (OverlongError, Reason.OVERLONG),
    (NonTextError, Reason.NON_TEXT),
    (InputError, Reason.NON_TEXT),
    (OverloadedError, Reason.OVERLOADED),
)


class Cascade:
    """The guard: probe, threshold, expert.

    Args:
        engine: Base model.
        probes: Maps token activations to (p, d).
        rule: Says which inputs go to the expert.
        decision_threshold: tau: a score of at least tau blocks.
        abstain_band: Half-width of the band around tau in which a score decides nothing.
        on_abstain: The verdict there.
        expert: Asked where d > lambda.
        merge: Makes one score of the probe's and the expert's.
        on_failure: What to do where the guard cannot do its work.
        tally: Counts decisions; None: counters of its own.
    """

    def __init__(
        self,
        *,
        engine: ActivationEngine,
        probes: Head,
        rule: DelegationRule,
        decision_threshold: float,
        expert: Expert,
        on_failure: FailurePolicy,
        merge: Merge = Merge(),  # noqa: B008  # frozen
        abstain_band: float = 0.0,
        on_abstain: Verdict = Verdict.BLOCK,
        tally: Tally | None = None,
    ) -> None:
        self._engine = engine
        self._probes = probes
        self._decision_threshold = decision_threshold
        self._expert = expert
        self._on_failure = on_failure
        self._rule = rule
        self._merge = merge
        self._abstain_band = abstain_band
        self._on_abstain = on_abstain
        self.tally = tally or Tally()

    async def check(self, messages: Iterable[Mapping[str, Any]]) -> Decision:
        """Decide about a conversation.

        Args:
            messages: Chat messages in the OpenAI form, oldest first, the input to screen last.

        Returns:
            The decision, also where something went wrong. The only exception that leaves this method is the
            cancellation of the calling task itself.
        """
        screening = _Screening()
        try:
            await self._screen(messages, screening)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Something inside was cancelled, not the caller. Hosts take a cancellation that leaves an action for
            # the end of the request and may answer without the guard.
            self._fail(screening, Reason.INTERNAL_ERROR, "a part of the guard was cancelled")
        except Exception as error:  # noqa: BLE001  # fails closed, whatever it is
            reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), Reason.INTERNAL_ERROR)
            self._fail(screening, reason, type(error).__name__)
        decision = screening.decision()
        self.tally.count(decision)
        return decision

    async def aclose(self) -> None:
        """Release the expert. The base model belongs to the process and stays."""
        await self._expert.aclose()

    def limited(self, calls: int) -> Cascade:
        """Return this cascade with at most so many calls of the expert, counts shared: for one request."""
        limited = copy.copy(self)
        limited._expert = CappedExpert(self._expert, countdown(calls))  # noqa: SLF001  # a copy of this very object
        return limited

    async def _screen(self, messages: Iterable[Mapping[str, Any]], screening: _Screening) -> None:
        conversation = Conversation.from_messages(messages)
        if conversation.is_blank:
            screening.conclude(Verdict.ALLOW, Reason.BLANK)
            return

        p, d = (float(score) for score in over_windows(await self._engine.run(conversation, self._probes)))
        if not (math.isfinite(p) and math.isfinite(d)):
            # Every comparison with NaN is false: it would pass for safe.
            raise ActivationError("the probes gave a score that is not a number", hint="Use a wider dtype")
        screening.probed(p, d)
        if not self._rule.delegates(d, conversation):
            screening.conclude(*self._judge(p, Reason.PROBE_SAFE, Reason.PROBE_UNSAFE))
            return

        screening.route = Route.EXPERT
        try:
            score = await self._expert.score(conversation)
        except ExpertCapError:
            raise
        except BaseException:
            self.tally.count_expert_attempts(1)
            raise
        self.tally.count_expert_attempts(score.attempts)
        if not 0.0 <= score.p_unsafe <= 1.0:
            raise ExpertVerdictError("the expert's score is not a probability")
        screening.p_expert = score.p_unsafe
        merged = float(self._merge(p, score.p_unsafe))
        screening.conclude(*self._judge(merged, Reason.EXPERT_SAFE, Reason.EXPERT_UNSAFE))

    def _judge(self, score: float, safe: Reason, unsafe: Reason) -> tuple[Verdict, Reason]:
        if abs(score - self._decision_threshold) < self._abstain_band:
            return self._on_abstain, Reason.ABSTAINED
        return (Verdict.BLOCK, unsafe) if score >= self._decision_threshold else (Verdict.ALLOW, safe)

    def _fail(self, screening: _Screening, reason: Reason, cause: str) -> None:
        # The cause is a type's name or a fixed phrase: an exception's message might quote the conversation.
        log.warning("guard failure %s (%s): policy %s applies", reason, cause, self._on_failure)
        if self._on_failure is FailurePolicy.ALLOW:
            verdict = Verdict.ALLOW
        elif self._on_failure is FailurePolicy.PROBE and screening.p is not None:
            verdict, _ = self._judge(screening.p, reason, reason)
        else:
            verdict = Verdict.BLOCK
        screening.conclude(verdict, reason)


class _Screening:
    """What is known so far about the input under check."""

    def __init__(self) -> None:
        self.route = Route.PROBE
        self.p: float | None = None
        self.d: float | None = None
        self.p_expert: float | None = None
        self._start = self._probe_end = perf_counter()
        # Closed until something says otherwise.
        self._verdict, self._reason = Verdict.BLOCK, Reason.INTERNAL_ERROR

    def probed(self, p: float, d: float) -> None:
        self.p, self.d = p, d
        self._probe_end = perf_counter()

    def conclude(self, verdict: Verdict, reason: Reason) -> None:
        self._verdict, self._reason = verdict, reason

    def decision(self) -> Decision:
        end = perf_counter()
        probe_end = self._probe_end if self.p is not None else end
        return Decision(
            verdict=self._verdict,
            route=self.route,
            reason=self._reason,
            p=self.p,
            d=self.d,
            p_expert=self.p_expert,
            timings=Timings(
                probe_ms=1000 * (probe_end - self._start),
                expert_ms=1000 * (end - probe_end) if self.route is Route.EXPERT else 0.0,
                total_ms=1000 * (end - self._start),
            ),
        )
