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
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ctd_guardrail.cascade.dialogue import Dialogue, note_answer
from ctd_guardrail.cascade.screening import Request, Screening, reason_of
from ctd_guardrail.cascade.settings import CascadeSettings
from ctd_guardrail.config.on_failure import on_failure_for
from ctd_guardrail.decision import (
    Decision,
    Mode,
    OnFailure,
    OnUnreadable,
    Reason,
    Route,
    Verdict,
)
from ctd_guardrail.errors import ActivationError, ExpertVerdictError, InputError, OverlongError
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert, Spend, countdown, unlimited
from ctd_guardrail.experts.protocol import Expert
from ctd_guardrail.observability.tally import Tally
from ctd_guardrail.observability.tracing import check_span, describe, expert_span
from ctd_guardrail.probes.windows import over_windows
from ctd_guardrail.text.conversation import Conversation, NonText
from ctd_guardrail.text.message_text import size_of
from ctd_guardrail.text.refusals import Receipts, Refusals

if TYPE_CHECKING:  # torch stays out of the import of the package
    from ctd_guardrail.activations.scorer import Scorer
    from ctd_guardrail.probes.probes import Probes

__all__ = ["Cascade"]

log = logging.getLogger(__name__)

# Characters of all units that one request may bring to be judged, for each token that one of them may have. A turn
# is seen again in the units of all later ones: a forged history of many turns would cost their number squared.
_CHARACTERS_PER_TOKEN: Final = 32

_COIN: Final = 1 << 53

# Above this many characters, reading an answer takes too long for an event loop.
_LONGEST_NOTED: Final = 16_384


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
        tally: Counts decisions; None: counters of its own.
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
        tally: Tally | None = None,
    ) -> None:
        self._settings = settings
        self._scorer = scorer
        self._probes = probes
        self._expert = expert if isinstance(expert, BoundedExpert) else BoundedExpert(expert)
        self._take: Callable[[], bool] = unlimited
        self._dialogue = Dialogue(
            context=settings.context,
            refusals=refusals or Refusals(),
            judgement_key=judgement_key,
            history=settings.history,
            refused_turns=settings.refused_turns,
            receipts=receipts,
        )
        self.tally = tally or Tally()

    async def check(
        self, messages: Iterable[Mapping[str, Any]], *, principal: str | None = None, asides: Iterable[str] = ()
    ) -> Decision:
        """Decide about a conversation: about every turn of the user that has not been judged before.

        An earlier turn that this guard has refused before, and that a refusal answers, stops no later turn, and no
        later turn is seen with it.

        Args:
            messages: Chat messages in the OpenAI form, oldest first, the input to screen last.
            principal: On whose behalf, for caps of each principal; None: unknown.
            asides: Texts of others that the main LLM will read beside the conversation, such as system messages of
                a client. Each is judged by itself, before the conversation; no answer settles one that is refused.

        Returns:
            The decision about the first part that stops the request, else about the last turn; also where something
            went wrong. The only exception that leaves this method is the cancellation of the calling task itself.
        """
        with check_span() as span:
            decision = await self._check(messages, principal, asides)
            describe(span, decision)
        return decision

    @staticmethod
    def note_answer(answer: str | Mapping[str, Any]) -> None:
        """Note an answer of the main LLM, so that it is not judged apart when a client sends it back as history.

        Only a hash is kept, for the process. An answer of more than 16,384 characters is not noted.

        Args:
            answer: Its text, or the whole message where it has tool calls.

        Raises:
            InputError: The message holds content that is not text.
        """
        message = {"content": answer} if isinstance(answer, str) else answer
        if size_of(message) <= _LONGEST_NOTED:
            note_answer(Conversation.from_messages([{**message, "role": "assistant"}]))

    async def aclose(self) -> None:
        """Release the expert. The base model belongs to the process and stays."""
        await self._expert.aclose()

    def limited(self, calls: int) -> Cascade:
        """Return this cascade with at most so many calls of the expert, counts shared: for one request."""
        limited = copy.copy(self)
        limited._take = countdown(calls)  # noqa: SLF001  # a copy of this very object
        return limited

    def forgetful(self) -> Cascade:
        """Return this cascade without the memory of the process: for self-tests, which ask what it can do now."""
        forgetful = copy.copy(self)
        forgetful._dialogue = replace(self._dialogue, judgement_key=None, receipts=None)  # noqa: SLF001  # as above
        return forgetful

    async def _check(
        self, messages: Iterable[Mapping[str, Any]], principal: str | None, asides: Iterable[str]
    ) -> Decision:
        non_text: NonText = "drop" if self._settings.on_nontext is OnUnreadable.ALLOW else "mark"
        try:
            conversation = await Conversation.read(messages, non_text=non_text)
            apart = await Conversation.read_texts(asides)
            mode = self._mode_for(conversation, principal)
        except Exception as error:  # noqa: BLE001  # fails closed, whatever it is
            screening = Screening(self._settings.mode)
            self._fail(screening, reason_of(error), type(error).__name__)
            return self._count(screening)
        deadline = (
            None if self._settings.deadline_s is None else asyncio.get_running_loop().time() + self._settings.deadline_s
        )
        request = Request(principal, deadline, mode)
        decision = await self._dialogue.judge(
            conversation,
            apart,
            partial(self._decide, request=request),
            mode=mode,
            tally=self.tally,
            characters=_CHARACTERS_PER_TOKEN * self._scorer.spec.max_tokens,
        )
        if decision is None:
            return self._allow_blank(request)
        # One that was remembered may have been made in the other mode.
        return decision if decision.mode is mode else replace(decision, mode=mode)

    def _mode_for(self, conversation: Conversation, principal: str | None) -> Mode:
        if self._settings.rollout is None or self._settings.mode is Mode.SHADOW:
            return self._settings.mode
        return self._settings.rollout.mode(conversation, principal)

    def _allow_blank(self, request: Request) -> Decision:
        screening = Screening(request.mode)
        screening.conclude(Verdict.ALLOW, Reason.BLANK)
        return self._count(screening)

    async def _decide(
        self, unit: Conversation, digest: str, obstacle: InputError | None, *, request: Request
    ) -> Decision:
        screening = Screening(request.mode)
        task = asyncio.current_task()
        cancellations = task.cancelling() if task else 0
        deadline = asyncio.timeout_at(request.deadline)
        try:
            async with deadline:
                await self._screen(unit, obstacle, request, screening)
        except asyncio.CancelledError:
            if task is not None and task.cancelling() > cancellations:
                raise
            # Something inside was cancelled, not the caller. Hosts take a cancellation that leaves an action for
            # the end of the request and may answer without the guard.
            self._fail(screening, Reason.INTERNAL_ERROR, "a part of the guard was cancelled")
        except Exception as error:  # noqa: BLE001  # fails closed, whatever it is
            is_late = deadline.expired() and isinstance(error, TimeoutError)
            if is_late and screening.is_judged:
                return self._count(screening, digest)
            self._fail(screening, Reason.DEADLINE if is_late else reason_of(error), type(error).__name__)
        return self._count(screening, digest)

    async def _screen(
        self, unit: Conversation, obstacle: InputError | None, request: Request, screening: Screening
    ) -> None:
        try:
            if obstacle is not None:
                raise obstacle
            reading = await self._scorer.run(unit, self._probes)
            screening.waited(reading.queue_ms, reading.forward_ms)
            p, d = over_windows(reading.rows).tolist()
        except InputError as error:
            if self._on_failure_for(error) is not OnUnreadable.EXPERT:
                raise
            score = await self._ask(unit, request, screening)
            screening.conclude(*self._judge(score, Reason.EXPERT_SAFE, Reason.EXPERT_UNSAFE))
            return
        if not (math.isfinite(p) and math.isfinite(d)):
            # Every comparison with NaN is false: it would pass for safe.
            raise ActivationError("the probes gave a score that is not a number", hint="Use a wider dtype")
        screening.probed(p, d)
        # A coin of its own for every input: by a hash, a repeated attack would be audited always or never.
        is_audited = self._settings.audit_share > 0.0 and secrets.randbelow(_COIN) < self._settings.audit_share * _COIN
        delegates = self._settings.rule.delegates(d, unit)
        # Now, and not when the expert has answered: the order of what monitors see must not depend on the scores, and
        # who leaves before the answer was delegated all the same.
        self.tally.count_routed(d, delegated=delegates or is_audited, audited=is_audited)
        if not delegates:
            screening.conclude(*self._judge(p, Reason.PROBE_SAFE, Reason.PROBE_UNSAFE))
        if is_audited:
            await self._audit(unit, p, request, screening, is_due=delegates)
        elif delegates:
            await self._delegate(unit, p, request, screening)

    async def _delegate(self, unit: Conversation, p: float, request: Request, screening: Screening) -> None:
        merged = float(self._settings.merge(p, await self._ask(unit, request, screening)))
        screening.conclude(*self._judge(merged, Reason.EXPERT_SAFE, Reason.EXPERT_UNSAFE))

    async def _audit(
        self, unit: Conversation, p: float, request: Request, screening: Screening, *, is_due: bool
    ) -> None:
        """Ask the expert, and note whether the cascade alone lets pass what it calls unsafe.

        Where it was not due to be asked and gives no answer, the probe's verdict stands.
        """
        screening.is_judged = not is_due
        alone = screening.verdict
        try:
            await self._delegate(unit, p, request, screening)
            if is_due:
                alone = screening.verdict
        except Exception as error:
            if is_due:
                raise
            log.warning("an audit got no answer (%s)", type(error).__name__)
        finally:
            # An expert that gave no answer might have called it unsafe: the upper end of an estimate has to hold.
            is_called_safe = screening.p_expert is not None and screening.p_expert < self._settings.decision_threshold
            self.tally.count_audit(missed=alone is Verdict.ALLOW and not is_called_safe)

    def _on_failure_for(self, error: InputError) -> OnUnreadable:
        return self._settings.on_overlong if isinstance(error, OverlongError) else self._settings.on_nontext

    async def _ask(self, unit: Conversation, request: Request, screening: Screening) -> float:
        """Return the expert's score."""
        screening.route = Route.EXPERT
        spend = Spend()
        try:
            with expert_span():
                score = await self._expert.ask(unit, spend, principal=request.principal, take=self._take)
        finally:
            if spend.attempts:
                self.tally.count_expert_attempts(spend.attempts, spend.tokens)
        if not 0.0 <= score.p_unsafe <= 1.0:
            raise ExpertVerdictError("the expert's score is not a probability")
        screening.p_expert = score.p_unsafe
        return score.p_unsafe

    def _judge(self, score: float, safe: Reason, unsafe: Reason) -> tuple[Verdict, Reason]:
        if abs(score - self._settings.decision_threshold) < self._settings.abstain_band:
            return self._settings.on_abstain, Reason.ABSTAINED
        return (Verdict.BLOCK, unsafe) if score >= self._settings.decision_threshold else (Verdict.ALLOW, safe)

    def _fail(self, screening: Screening, reason: Reason, cause: str) -> None:
        policy = on_failure_for(self._settings.on_failure, reason)
        verdict = Verdict.BLOCK
        if policy is OnFailure.ALLOW:
            verdict = Verdict.ALLOW
        elif policy is OnFailure.PROBE and screening.p is not None:
            verdict, _ = self._judge(screening.p, reason, reason)
        # The cause is a type's name or a fixed phrase: an exception's message might quote the conversation.
        log.warning("guard failure %s (%s): %s", reason, cause, verdict)
        screening.fail(verdict, reason, policy)

    def _count(self, screening: Screening, digest: str | None = None) -> Decision:
        decision = screening.decision()
        self.tally.count(decision, digest)
        return decision
