"""An expert behind all of its limits: switch, bulkhead, breaker, caps, retries, one deadline.

No limit chooses a verdict. Each raises an error of its own, and ``on_failure`` decides by it. Experts themselves have
no limits of this kind: calibration and service both ask through a :class:`BoundedExpert`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import stamina

from ctd_guardrail.errors import (
    CapStoreError,
    ExpertCapError,
    ExpertDisabledError,
    ExpertError,
    ExpertNotAskedError,
    ExpertTimeoutError,
    ExpertUnavailableError,
    ExpertVerdictError,
    InputError,
)
from ctd_guardrail.experts.bounded.breaker import CircuitBreaker, Health
from ctd_guardrail.experts.bounded.bulkhead import Bulkhead
from ctd_guardrail.experts.bounded.deadline import Deadline, within
from ctd_guardrail.experts.bounded.spend_cap import SpendCaps
from ctd_guardrail.experts.protocol import Expert, ExpertScore
from ctd_guardrail.text.conversation import Conversation

__all__ = ["BoundedExpert", "Spend", "countdown", "health_of", "unlimited"]

log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.1
# The longest pause, in first pauses.
_LONGEST_PAUSE: Final = 20
# Without a deadline, no attempt waits longer than this for the end of a rate limit.
_LONGEST_RETRY_AFTER_S: Final = 120.0
# What the built-in prompt and the answer take beside the conversation, and what a token takes of it.
_PROMPT_TOKENS: Final = 300
_BYTES_PER_TOKEN: Final = 4


@dataclass(slots=True)
class Spend:
    """The cost of one question to the expert so far, whether or not it was answered.

    Attributes:
        attempts: Calls that were made.
        tokens: Their tokens, estimated from the text until the expert reports them.
    """

    attempts: int = 0
    tokens: int = 0


def unlimited() -> bool:
    """Allow any number of calls."""
    return True


def countdown(calls: int) -> Callable[[], bool]:
    """Return a function that returns True for this number of calls, and False from then on."""
    left = iter(range(calls))
    return lambda: next(left, None) is not None


def health_of(error: BaseException) -> Health:
    """Return whether an error means that the expert is unhealthy.

    An answer that is no verdict is an answer: the author of the input can provoke it, and must not open the breaker
    with it. A fault that a pause does not heal, such as a wrong key, does not open it either. Neither does a client
    that left.
    """
    if isinstance(error, ExpertTimeoutError) or (isinstance(error, ExpertUnavailableError) and error.is_transient):
        return Health.BAD
    return Health.GOOD if isinstance(error, ExpertVerdictError | InputError) else Health.UNKNOWN


class BoundedExpert:
    """Asks an expert within its limits. It is an expert itself.

    Args:
        expert: The expert.
        is_enabled: The kill switch: if it is off, no call is made.
        bulkhead: Limits the calls under way and the callers that wait for them; None: no limit here.
        breaker: Makes no call while the expert keeps failing; None: there is none.
        caps: Limit the spend; None: there is no cap.
        attempts: Calls that may be made for one question if faults are transient.
        retries_timeouts: Whether a call that exceeded the expert's own deadline is repeated.
        first_pause_s: Seconds before the second attempt, on average. Each pause is twice as long as the one before.
        timeout_s: Seconds for one question, waiting and all attempts included; None: no deadline here.

    Attributes:
        unbounded: The expert.
        is_enabled: The argument of the same name.
        bulkhead: The argument of the same name.
        breaker: The argument of the same name.
    """

    def __init__(
        self,
        expert: Expert,
        *,
        is_enabled: bool = True,
        bulkhead: Bulkhead | None = None,
        breaker: CircuitBreaker | None = None,
        caps: SpendCaps | None = None,
        attempts: int = 1,
        retries_timeouts: bool = False,
        first_pause_s: float = _FIRST_PAUSE_S,
        timeout_s: float | None = None,
    ) -> None:
        self.unbounded = expert
        self.bulkhead = bulkhead
        self.breaker = breaker
        self.is_enabled = is_enabled
        self._caps = caps
        self._attempts = attempts
        self._retries_timeouts = retries_timeouts
        self._first_pause_s = first_pause_s
        self._timeout_s = timeout_s

    @property
    def identity(self) -> str:
        """The identity of the expert: no limit changes a score."""
        return self.unbounded.identity

    async def aclose(self) -> None:
        """Close the expert."""
        await self.unbounded.aclose()

    def with_limits(
        self, *, is_enabled: bool, breaker: CircuitBreaker | None, caps: SpendCaps | None, attempts: int
    ) -> BoundedExpert:
        """Return the same expert with the limits of service as well. The bulkhead and the deadline stay."""
        return BoundedExpert(
            self.unbounded,
            is_enabled=is_enabled,
            bulkhead=self.bulkhead,
            breaker=breaker,
            caps=caps,
            attempts=attempts,
            timeout_s=self._timeout_s,
        )

    async def score(self, conversation: Conversation) -> ExpertScore:
        """Return P(unsafe) for the conversation; see :meth:`ask`."""
        return await self.ask(conversation, Spend())

    async def ask(
        self,
        conversation: Conversation,
        spend: Spend,
        *,
        principal: str | None = None,
        take: Callable[[], bool] = unlimited,
    ) -> ExpertScore:
        """Return P(unsafe) for the conversation.

        Args:
            conversation: What is to be judged.
            spend: Counts every call when it is made. It is right however this ends.
            principal: On whose behalf, for caps of each principal.
            take: Takes one of the request's own calls, and returns whether one was left.

        Raises:
            ExpertNotAskedError: It may not be asked now; the type states why.
            ExpertError: It gave no usable score.
            OverlongError: The conversation is longer than this expert reads.
        """
        if not self.is_enabled:
            raise ExpertDisabledError("the expert is switched off", hint="Set expert_enabled: true")
        deadline = None if self._timeout_s is None else Deadline.after(self._timeout_s)
        question = _Question(conversation, spend, principal, take, deadline)
        if self.bulkhead is None:
            return await self._ask(question)
        await within(self.bulkhead.acquire(), deadline)
        try:
            return await self._ask(question)
        finally:
            self.bulkhead.release()

    async def _ask(self, question: _Question) -> ExpertScore:
        if self._attempts == 1:
            return await self._try(question)
        failure: ExpertError | None = None
        failures = 0

        def pause(error: Exception) -> float | bool:
            nonlocal failures
            failures += 1
            return self._pause_s(error, failures, question.deadline)

        async for attempt in stamina.retry_context(on=pause, attempts=self._attempts, timeout=None):
            with attempt:
                try:
                    return await self._try(question)
                except (ExpertUnavailableError, ExpertTimeoutError) as error:
                    failure = error
                    raise
                except ExpertNotAskedError:
                    # The failure of the attempt before is the reason.
                    if failure is None:
                        raise
        assert failure is not None  # noqa: S101  # the only way out of the loop
        raise failure

    def _pause_s(self, error: Exception, failures: int, deadline: Deadline | None) -> float | bool:
        """Return the seconds to wait before another attempt, or False if there is no other attempt."""
        retry_after_s = 0.0
        if isinstance(error, ExpertUnavailableError) and error.is_transient:
            retry_after_s = error.retry_after_s or 0.0
        elif not (isinstance(error, ExpertTimeoutError) and self._retries_timeouts):
            return False
        longest_s = _LONGEST_RETRY_AFTER_S if deadline is None else deadline.left_s
        grown_s = self._first_pause_s * min(_LONGEST_PAUSE, 2 ** (failures - 1))
        pause_s = max(retry_after_s, grown_s * (0.5 + random.random()))  # noqa: S311  # jitter
        return pause_s if pause_s < longest_s else False

    async def _try(self, question: _Question) -> ExpertScore:
        if self.breaker is None:
            return await self._call(question)
        with self.breaker.call():
            return await self._call(question)

    async def _call(self, question: _Question) -> ExpertScore:
        if not question.take():
            raise ExpertCapError("the request has used up its calls of the expert", hint="Raise max_expert_calls")
        estimate = question.tokens
        if self._caps is not None:
            await self._caps.take(question.principal, tokens=estimate)
        question.spend.attempts += 1
        question.spend.tokens += estimate
        try:
            score = await within(self.unbounded.score(question.conversation), question.deadline)
        except ExpertNotAskedError:  # a local expert's own queue is full
            await self._settle(question, calls=-1, tokens=-estimate)
            raise
        except ExpertError as error:
            if error.attempts > 1:
                await self._settle(question, calls=error.attempts - 1, tokens=0)
            raise
        billed = estimate if score.tokens is None else score.tokens
        await self._settle(question, calls=score.attempts - 1, tokens=billed - estimate)
        return score

    async def _settle(self, question: _Question, *, calls: int, tokens: int) -> None:
        """Correct what was taken and counted before the call."""
        question.spend.attempts += calls
        question.spend.tokens += tokens
        if self._caps is not None:
            try:
                await self._caps.settle(question.principal, calls=calls, tokens=tokens)
            except CapStoreError:
                # The answer has arrived and is paid for. The next call finds the store down before it is made.
                log.warning("the cost of an answer of the expert could not be charged")


class _Question:
    """One question and its deadline."""

    __slots__ = ("conversation", "deadline", "principal", "spend", "take", "tokens")

    def __init__(
        self,
        conversation: Conversation,
        spend: Spend,
        principal: str | None,
        take: Callable[[], bool],
        deadline: Deadline | None,
    ) -> None:
        self.conversation = conversation
        self.spend = spend
        self.principal = principal
        self.take = take
        size = sum(len(message.content.encode("utf-8", "replace")) for message in conversation.messages)
        self.tokens = _PROMPT_TOKENS + size // _BYTES_PER_TOKEN
        self.deadline = deadline
