"""Settings that a single request changes, where and as far as the operator allows it.

What is not allowed or not understood is refused, and the request blocked: falling back to the configured value would
let a caller believe in a budget or a mode that it does not have.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ctd_guardrail.cascade.cascade import Cascade
from ctd_guardrail.config.limits import PrincipalConfig
from ctd_guardrail.config.override_bounds import Bounds
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.decision import Decision, Mode, OnFailure, Reason, Route, Verdict
from ctd_guardrail.errors import ConfigError, InfeasibleBudgetError, OverrideError
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert
from ctd_guardrail.observability.events import Decided, Emit, UnscreenedCall
from ctd_guardrail.observability.queue import QUEUE
from ctd_guardrail.observability.request import REQUEST_ID
from ctd_guardrail.observability.tally import Tally
from ctd_guardrail.observability.watch import Watch
from ctd_guardrail.policy.guarantees import Guarantee

__all__ = ["Guard", "Overrides", "read_overrides"]

log = logging.getLogger(__name__)

_MAX_CASCADES: Final = 64

_Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Overrides(BaseModel):
    """What a request may ask for; None: as configured.

    Attributes:
        alpha: Budget.
        delta: Admissible probability that calibration misses it.
        guarantee: What alpha bounds.
        horizon: Number of inputs that ``guarantee: next`` speaks of.
        mode: ``enforce`` or ``shadow``.
        expert: Name of one of ``experts``.
        on_failure: What to do with the request when the guard cannot do its work.
        max_expert_calls: Most calls of the expert for this request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    alpha: _Share | None = None
    delta: _Share | None = None
    guarantee: Guarantee | None = None
    horizon: Annotated[int, Field(ge=1)] | None = None
    mode: Mode | None = None
    expert: str | None = None
    on_failure: OnFailure | None = None
    max_expert_calls: Annotated[int, Field(ge=0)] | None = None


def read_overrides(raw: object, config: CtdConfig, bounds: Bounds) -> Overrides:
    """Check what a request asks for.

    Args:
        raw: What stands in the request.
        config: Says what may be asked for.
        bounds: Say how far.

    Raises:
        OverrideError: It is not a mapping, or a key is unknown, not allowed, of a wrong value, or beyond its bound.
    """
    if not isinstance(raw, Mapping):
        raise OverrideError("overrides are a mapping of settings to values")
    for name in Overrides.model_fields:
        if name in raw and name not in config.allow_overrides:
            raise OverrideError(f"{name} may not be overridden", hint="Name it in allow_overrides")
    try:
        overrides = Overrides.model_validate(dict(raw))
    except ValidationError as error:
        # A key that is unknown is the caller's own word: only its kind of mistake is told.
        first = error.errors(include_input=False)[0]
        raise OverrideError(f"an override is wrong ({first['type']})") from None
    bounds.check(alpha=overrides.alpha, delta=overrides.delta, mode=overrides.mode, on_failure=overrides.on_failure)
    if overrides.expert is not None and overrides.expert not in config.experts:
        raise OverrideError("there is no expert of this name", hint="Name it in experts")
    return overrides


def _principal(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


class Guard:
    """A cascade with settings that single requests may change. It is what the doors talk to.

    Plans of overridden settings are kept for the next request that asks for them; the least recently used go first.

    Args:
        config: The configuration.
        experts: Its named experts; None names the one that is asked where a request chooses none.
        build: Makes the cascade of a configuration around an expert. Called with the configuration at once, and with
            what requests make of it on a thread of its own.
        bounds: How far a request may move a setting.
        capacity: Cascades that are kept.
        watch: The sinks of its events; None: only the tally counts them.

    Attributes:
        watch: As given.
        tally: Counts of all decisions, whatever their settings.
        emit: Reports events.
        experts: As given.

    Raises:
        CtdError: The cascade cannot be built.
    """

    def __init__(
        self,
        config: CtdConfig,
        experts: Mapping[str | None, BoundedExpert],
        build: Callable[[CtdConfig, BoundedExpert, Emit], Cascade],
        *,
        bounds: Bounds,
        capacity: int = _MAX_CASCADES,
        watch: Watch | None = None,
    ) -> None:
        self.tally = Tally()
        self.emit = QUEUE.emitter(at_once=[self.tally], later=() if watch is None else watch.sinks)
        self.watch = watch
        self._config = config
        self._bounds = bounds
        self.experts = experts
        self._build = build
        self._capacity = capacity
        self._cascade = build(config, experts[None], self.emit)
        self._overridden: OrderedDict[Overrides, Cascade] = OrderedDict()
        self._lock = threading.Lock()  # requests come from several event loops

    @property
    def principal(self) -> PrincipalConfig | None:
        """Where a request says on whose behalf it is made; None: nobody asks."""
        return self._config.principal

    async def check(
        self,
        messages: Iterable[Mapping[str, Any]],
        overrides: object = None,
        *,
        principal: object = None,
        asides: Iterable[str] = (),
    ) -> Decision:
        """Decide about a conversation.

        Args:
            messages: Chat messages in the OpenAI form, oldest first, the input to screen last.
            overrides: Settings for this request alone, a mapping as the caller wrote it; None: as configured.
            principal: On whose behalf, a word or a number as the caller wrote it; anything else: unknown.
            asides: Texts of others beside the conversation; see :meth:`Cascade.check`.

        Returns:
            The decision, also where something went wrong; as :meth:`Cascade.check`, this raises nothing but the
            cancellation of the calling task.
        """
        known = _principal(principal)
        if overrides is None:
            return await self._cascade.check(messages, principal=known, asides=asides)
        try:
            cascade = await self._get(overrides)
        except (OverrideError, ConfigError, InfeasibleBudgetError) as error:
            return self._refuse(Reason.BAD_OVERRIDE, error)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return self._refuse(Reason.INTERNAL_ERROR, error)
        except Exception as error:  # noqa: BLE001  # fails closed, whatever it is
            return self._refuse(Reason.INTERNAL_ERROR, error)
        return await cascade.check(messages, principal=known, asides=asides)

    def count_unscreened_call(self, door: str) -> None:
        """Report a call of the main LLM without a verdict."""
        self.emit(UnscreenedCall(door))

    def note_answer(self, answer: str | Mapping[str, Any]) -> None:
        """Note an answer of the main LLM; see :meth:`Cascade.note_answer`."""
        self._cascade.note_answer(answer)

    async def check_for_self_test(self, messages: Iterable[Mapping[str, Any]]) -> Decision:
        """Decide as configured, without remembered decisions; see :meth:`Cascade.for_self_test`."""
        return await self._cascade.for_self_test().check(messages)

    async def aclose(self) -> None:
        """Release the experts and write what is known. The base model belongs to the process and stays."""
        for expert in self.experts.values():
            await expert.aclose()
        if self.watch is not None:
            await asyncio.to_thread(self.watch.close)

    def _refuse(self, reason: Reason, error: BaseException) -> Decision:
        """Block: the failure policy is for a guard that broke, not for a caller that asks for what it may not have."""
        log.warning("request refused: %s (%s)", reason, type(error).__name__)
        decision = Decision(verdict=Verdict.BLOCK, route=Route.PROBE, reason=reason, mode=self._config.mode)
        self.emit(Decided(decision, request_id=REQUEST_ID.get()))
        return decision

    async def _get(self, raw: object) -> Cascade:
        asked = read_overrides(raw, self._config, self._bounds)
        settings = asked.model_copy(update={"max_expert_calls": None})
        cascade = self._kept(settings)
        if cascade is None:
            cascade = await asyncio.to_thread(self._make, settings)
        return cascade if asked.max_expert_calls is None else cascade.limited(asked.max_expert_calls)

    def _kept(self, settings: Overrides) -> Cascade | None:
        with self._lock:
            if settings in self._overridden:
                self._overridden.move_to_end(settings)
            return self._overridden.get(settings)

    def _make(self, settings: Overrides) -> Cascade:
        changes = settings.model_dump(exclude={"expert"}, exclude_none=True)
        config = self._config.model_copy(update=changes)
        cascade = self._build(config, self.experts[settings.expert], self.emit)
        with self._lock:
            self._overridden[settings] = cascade
            if len(self._overridden) > self._capacity:
                self._overridden.popitem(last=False)
        return cascade
