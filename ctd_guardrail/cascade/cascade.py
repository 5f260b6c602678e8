"""Calibrate-Then-Delegate for one input (arXiv 2604.14251, algorithm 1).

:meth:`Cascade._judge` is the algorithm: activations, both probes, the threshold, and the expert only if d(x) > lambda.
:mod:`~ctd_guardrail.cascade.dialogue` splits a request into units, and :mod:`~ctd_guardrail.cascade.on_failure` turns
exceptions into verdicts. :meth:`Cascade.check` raises nothing: an exception in an action would be logged by the host
together with the user's text, and could open the gate.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ctd_guardrail.cascade.dialogue import Dialogue, Judge, Unit, note_answer
from ctd_guardrail.cascade.on_failure import conclude, fail, reason_of
from ctd_guardrail.cascade.outcome import Outcome, Request, Usage
from ctd_guardrail.cascade.settings import CascadeSettings
from ctd_guardrail.decision import Decision, Mode, OnUnreadable, Reason, Route, Verdict
from ctd_guardrail.errors import ActivationError, ExpertVerdictError, InputError
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert, Spend, countdown, unlimited
from ctd_guardrail.experts.protocol import Expert
from ctd_guardrail.observability.events import (
    Arrived,
    Audited,
    Decided,
    Emit,
    ExpertCalled,
    Origin,
    Routed,
    Served,
    discard,
)
from ctd_guardrail.observability.request import REQUEST_ID
from ctd_guardrail.observability.tracing import check_span, describe, expert_span
from ctd_guardrail.policy.pace import certified
from ctd_guardrail.probes.windows import over_windows
from ctd_guardrail.runtime.memory import Memory, Placement
from ctd_guardrail.runtime.runtime import Runtime
from ctd_guardrail.text.conversation import Conversation, NonText
from ctd_guardrail.text.refusals import Receipts, Refusals

if TYPE_CHECKING:  # torch stays out of the import of the package
    from ctd_guardrail.activations.scorer import Scorer
    from ctd_guardrail.probes.probes import Probes

__all__ = ["Cascade"]

log = logging.getLogger(__name__)

# Characters that all units of one request may have together, for each token that one of them may have. A turn is seen
# again in the units of all later turns: without a limit, a forged history would cost the square of its length.
_CHARACTERS_PER_TOKEN: Final = 32

_COIN: Final = 1 << 53


class _Arrival(NamedTuple):
    """When a request arrived, its place, and the number of earlier turns of the user."""

    place: Placement
    at: float
    earlier: int


class Cascade:
    """The guard: probe, threshold, expert.

    Args:
        settings: All settings that judgements depend on.
        scorer: Base model, in this process or served.
        probes: Maps token activations to (p, d).
        expert: Judges the inputs with d > lambda. An expert without limits of its own is asked without limits.
        refusals: The answers by which the app refuses.
        receipts: Signs refusals; None: only the memory of the process proves one.
        judgement_key: Hash of everything that judgements depend on beside the unit. With it they are remembered for
            the process; None: each turn is judged at each request.
        emit: Reports events.
        origin: The kind of request that this cascade decides about, for its events.
        memory: Remembers decisions, conversations and answers of the main LLM; None: that of the runtime.
        runtime: The runtime whose memory that is; None: that of the process.

    Attributes:
        settings: The argument of the same name.
    """

    def __init__(
        self,
        settings: CascadeSettings,
        *,
        scorer: Scorer,
        probes: Probes,
        expert: Expert | BoundedExpert,
        refusals: Refusals | None = None,
        receipts: Receipts | None = None,
        judgement_key: str | None = None,
        emit: Emit = discard,
        origin: Origin = Origin.CONFIGURED,
        memory: Memory | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        runtime = runtime or Runtime.default()
        self.settings = settings
        self._scorer = scorer
        self._probes = probes
        self._expert = expert if isinstance(expert, BoundedExpert) else BoundedExpert(expert)
        self._calls = settings.max_expert_calls
        self._memory: Memory = memory or runtime.memory
        self._dialogue = Dialogue(settings, refusals or Refusals(), judgement_key, receipts, self._memory)
        self._emit = emit
        self._origin = origin

    async def check(
        self, messages: Iterable[Mapping[str, Any]], *, principal: str | None = None, asides: Iterable[str] = ()
    ) -> Decision:
        """Decide about a conversation: about every turn of the user that has not been judged before.

        An earlier turn that this guard has refused before, and that a refusal answers, stops no later turn. No later
        turn is seen with it.

        Args:
            messages: Chat messages in the OpenAI form, oldest first, the input to screen last.
            principal: On whose behalf, for caps of each principal; None: unknown.
            asides: Texts of others that the main LLM will read beside the conversation, such as system messages of
                a client. Each is judged by itself, before the conversation; no answer settles one that is refused.

        Returns:
            The decision about the first part that stops the request, else about the last turn; also if something
            went wrong. The only exception that leaves this method is the cancellation of the calling task.
        """
        with check_span() as span:
            decision = await self._check(messages, principal, asides)
            describe(span, decision)
        return decision

    def note_answer(self, answer: str | Mapping[str, Any]) -> None:
        """Remember an answer of the main LLM; see :func:`ctd_guardrail.cascade.dialogue.note_answer`."""
        note_answer(answer, self._memory)

    async def aclose(self) -> None:
        """Release the expert. The base model belongs to the runtime and stays."""
        await self._expert.aclose()

    def limited(self, calls: int) -> Cascade:
        """Return this cascade with a limit on the calls of each request, where it is below the configured one."""
        limited = copy.copy(self)
        least = calls if self._calls is None else min(calls, self._calls)
        limited._calls = least  # noqa: SLF001  # a copy of this very object
        return limited

    def for_self_test(self) -> Cascade:
        """Return this cascade without remembered decisions and at its certified threshold.

        Its events are marked as those of a self-test.
        """
        tested = copy.copy(self)
        tested.settings = replace(self.settings, rule=certified(self.settings.rule))
        tested._dialogue = self._dialogue.without_memory()  # noqa: SLF001  # as above
        tested._origin = Origin.SELF_TEST  # noqa: SLF001  # as above
        return tested

    async def _check(
        self, messages: Iterable[Mapping[str, Any]], principal: str | None, asides: Iterable[str]
    ) -> Decision:
        settings = self.settings
        non_text: NonText = "drop" if settings.on_nontext is OnUnreadable.ALLOW else "mark"
        request_id = REQUEST_ID.get()
        try:
            conversation = await Conversation.read(messages, non_text=non_text)
            apart = await Conversation.read_texts(asides)
            mode = self._mode_for(conversation, principal)
        except Exception as error:  # noqa: BLE001  # fails closed, whatever it is
            outcome = Outcome(settings.mode)
            fail(outcome, reason_of(error), type(error).__name__, settings)
            return self._report(outcome, request_id)
        usage = Usage()
        request = Request(mode, principal, request_id, self._deadline(), self._limit(), self._limit(), usage)
        arrival = None
        try:
            if self._origin is not Origin.SELF_TEST and conversation.messages:
                before, now = await conversation.place()
                arrival = self._arrive(await self._memory.place(before, now), len(before))
            decision = await self._dialogue.judge(
                conversation,
                apart,
                Judge(partial(self._decide, request), self._draw_audit, partial(self._audit_again, request)),
                mode=mode,
                emit=self._emit,
                origin=self._origin,
                characters=_CHARACTERS_PER_TOKEN * self._scorer.spec.max_tokens,
            )
        except Exception as error:  # noqa: BLE001  # a memory of the operator may raise; fails closed, whatever it is
            outcome = Outcome(mode)
            fail(outcome, reason_of(error), type(error).__name__, settings)
            return self._report(outcome, request_id)
        finally:
            # A request that was cancelled has cost its calls too.
            if arrival is not None:
                self._serve(usage, arrival)
        if decision is None:
            outcome = Outcome(mode)
            outcome.conclude(Verdict.ALLOW, Reason.BLANK)
            return self._report(outcome, request_id)
        # A remembered decision may have been made in the other mode.
        return decision if decision.mode is mode else replace(decision, mode=mode)

    def _limit(self) -> Callable[[], bool]:
        return unlimited if self._calls is None else countdown(self._calls)

    def _deadline(self) -> float | None:
        after_s = self.settings.deadline_s
        return None if after_s is None else asyncio.get_running_loop().time() + after_s

    def _arrive(self, place: Placement, earlier: int) -> _Arrival:
        at = time.time()
        self._emit(Arrived(place.conversation, place.digest, at, self._origin))
        return _Arrival(place, at, earlier)

    def _serve(self, usage: Usage, arrival: _Arrival) -> None:
        """Report what the request has used."""
        (name, digest, is_placed), at, earlier = arrival
        calls, audits = usage.calls, usage.audits
        if self._calls is not None:
            calls, audits = min(calls, self._calls), min(audits, self._calls)
        scores = tuple(usage.scores)
        self._emit(Served(name, digest, scores, calls + audits, is_placed, at, self._origin, earlier, usage.by_rule))

    def _mode_for(self, conversation: Conversation, principal: str | None) -> Mode:
        rollout = self.settings.rollout
        if rollout is None or self.settings.mode is Mode.SHADOW:
            return self.settings.mode
        return Mode.ENFORCE if rollout.enforces(conversation, principal) else Mode.SHADOW

    async def _decide(self, request: Request, unit: Unit) -> Decision:
        """Judge a unit, and report the decision."""
        outcome = Outcome(request.mode)
        await conclude(self._judge(unit, request, outcome), outcome, self.settings, deadline=request.deadline)
        return self._report(outcome, request.request_id, unit.digest)

    async def _judge(self, unit: Unit, request: Request, outcome: Outcome) -> None:
        """Judge a unit: p and d by the probes, then the expert if d > lambda."""
        try:
            p, d = await self._score(unit, outcome)
        except InputError as error:
            if self.settings.on_unreadable(error) is not OnUnreadable.EXPERT:
                raise
            request.usage.calls += 1
            if unit.is_turn:
                request.usage.scores.append(math.inf)
            p_expert = await self._ask(unit, request, outcome)
            outcome.conclude(*self.settings.judge(p_expert, Reason.EXPERT_SAFE, Reason.EXPERT_UNSAFE))
            return
        is_due = self.settings.rule.delegates(d, unit.conversation)
        is_audited = self._draw_audit()
        request.usage.calls += is_due
        request.usage.audits += is_audited and not is_due
        request.usage.by_rule += is_due
        if unit.is_turn:
            request.usage.scores.append(d)
        # Reported before the expert answers. Otherwise the order would depend on the scores, and cancelled requests
        # would be lost.
        self._emit(Routed(d, is_due or is_audited, is_audited, self._origin))
        if not is_due:
            outcome.conclude(*self.settings.judge(p, Reason.PROBE_SAFE, Reason.PROBE_UNSAFE))
        if is_audited:
            await self._audit(unit, p, request, outcome, is_due=is_due)
        elif is_due:
            await self._delegate(unit, p, request, outcome)

    async def _score(self, unit: Unit, outcome: Outcome) -> tuple[float, float]:
        """Return p and d of the window with the highest score of each."""
        if unit.obstacle is not None:
            raise unit.obstacle
        reading = await self._scorer.run(unit.conversation, self._probes)
        outcome.add_times(reading.queue_ms, reading.forward_ms)
        p, d = over_windows(reading.rows).tolist()
        if not (math.isfinite(p) and math.isfinite(d)):
            # Every comparison with NaN is false: NaN would pass for safe.
            raise ActivationError("the probes gave a score that is not a number", hint="Use a wider dtype")
        outcome.add_scores(p, d)
        return p, d

    def _draw_audit(self) -> bool:
        # A coin for each input. With a hash, a repeated attack would be audited always or never.
        share = self.settings.audit_share
        return share > 0.0 and secrets.randbelow(_COIN) < share * _COIN

    async def _delegate(self, unit: Unit, p: float, request: Request, outcome: Outcome) -> None:
        """Merge the expert's score with p, and judge the merged score."""
        merged = float(self.settings.merge(p, await self._ask(unit, request, outcome)))
        outcome.conclude(*self.settings.judge(merged, Reason.EXPERT_SAFE, Reason.EXPERT_UNSAFE))

    async def _audit(self, unit: Unit, p: float, request: Request, outcome: Outcome, *, is_due: bool) -> None:
        """Ask the expert, and report whether the cascade alone allows an input that the expert calls unsafe.

        If the expert was not due and gives no answer, the probe's verdict stands.
        """
        outcome.is_judged = not is_due
        alone = outcome.verdict
        if not is_due:
            # A coin must not use up the calls that later units may need.
            request = request._replace(take=request.take_audit)
        try:
            await self._delegate(unit, p, request, outcome)
            if is_due:
                alone = outcome.verdict
        except Exception as error:
            if is_due:
                raise
            log.warning("an audit got no answer (%s)", type(error).__name__)
        finally:
            # An expert without an answer might have called it unsafe: the upper end of an estimate has to hold.
            p_expert = outcome.p_expert
            is_called_safe = p_expert is not None and p_expert < self.settings.decision_threshold
            self._emit(Audited(alone is Verdict.ALLOW and not is_called_safe, self._origin))

    async def _audit_again(self, request: Request, unit: Unit, known: Decision) -> Decision:
        """Audit a remembered decision, and return the one that stands. The expert is not asked what it has answered."""
        settings, p, d = self.settings, known.p, known.d
        if known.p_expert is None and p is not None and d is not None:
            request.usage.audits += 1
            outcome = Outcome(request.mode)
            outcome.add_scores(p, d)
            outcome.conclude(*settings.judge(p, Reason.PROBE_SAFE, Reason.PROBE_UNSAFE))
            await conclude(
                self._audit(unit, p, request, outcome, is_due=False), outcome, settings, deadline=request.deadline
            )
            return self._report(outcome, request.request_id, unit.digest)
        alone = known.verdict
        if p is not None and d is not None and not certified(settings.rule).delegates(d, unit.conversation):
            alone, _ = settings.judge(p, Reason.PROBE_SAFE, Reason.PROBE_UNSAFE)
        is_called_safe = known.p_expert is not None and known.p_expert < settings.decision_threshold
        self._emit(Audited(alone is Verdict.ALLOW and not is_called_safe, self._origin))
        return known

    async def _ask(self, unit: Unit, request: Request, outcome: Outcome) -> float:
        """Return the expert's score."""
        outcome.route = Route.EXPERT
        spend = Spend()
        try:
            with expert_span():
                score = await self._expert.ask(unit.conversation, spend, principal=request.principal, take=request.take)
        finally:
            if spend.attempts:
                self._emit(ExpertCalled(spend.attempts, spend.tokens, self._origin))
        if not 0.0 <= score.p_unsafe <= 1.0:
            raise ExpertVerdictError("the expert's score is not a probability")
        outcome.p_expert = score.p_unsafe
        return score.p_unsafe

    def _report(self, outcome: Outcome, request_id: str | None, digest: str | None = None) -> Decision:
        decision = outcome.decision()
        self._emit(Decided(decision, time.time(), digest, request_id, self._origin))
        return decision
