"""The guard: a cascade whose settings single requests may change. NeMo Guardrails, sidecar and CLI call it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from ctd_guardrail.assembly.cascades import CascadeFactory
from ctd_guardrail.assembly.overrides import Overrides, read_overrides
from ctd_guardrail.cascade.cascade import Cascade
from ctd_guardrail.config.limits import PrincipalConfig
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.decision import Decision, Reason, Route, Verdict
from ctd_guardrail.errors import ConfigError, InfeasibleBudgetError, OverrideError
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert
from ctd_guardrail.observability.events import Decided, UnscreenedCall
from ctd_guardrail.observability.pace_sink import PaceSink
from ctd_guardrail.observability.queue import event_queue
from ctd_guardrail.observability.request import REQUEST_ID
from ctd_guardrail.observability.tally import Tally
from ctd_guardrail.observability.watch import Watch
from ctd_guardrail.policy.pace import PacedRule
from ctd_guardrail.policy.plan import Plan
from ctd_guardrail.policy.store import Policy
from ctd_guardrail.runtime.cancellation import watch_cancellation
from ctd_guardrail.runtime.lru import LruCache
from ctd_guardrail.runtime.memory import Memory

__all__ = ["Guard"]

log = logging.getLogger(__name__)

_MAX_CASCADES: Final = 64


class Guard:
    """Decides about conversations under one configuration and one policy.

    :func:`ctd_guardrail.assembly.prepared.load_guard` makes one from a folder.

    Args:
        factory: Builds cascades. It is called once here, and on a thread for settings that requests ask for.
        experts: The experts by name; None names the configured one.
        folder: The folder of the configuration.
        capacity: Number of cascades of overridden settings that are kept for the next request that asks for them.

    Attributes:
        folder: The argument of the same name.
        experts: The argument of the same name.
        tally: Counts of all decisions, whatever their settings.
        emit: Reports events.

    Raises:
        CtdError: The cascade cannot be built.
    """

    def __init__(
        self,
        factory: CascadeFactory,
        experts: Mapping[str | None, BoundedExpert],
        *,
        folder: Path,
        capacity: int = _MAX_CASCADES,
    ) -> None:
        self.folder = folder
        self.experts = experts
        self._factory = factory
        self._bounds = factory.bounds
        self.tally = Tally()
        later = () if factory.watch is None else factory.watch.sinks
        paced = () if factory.paced is None else (PaceSink(factory.paced.pace),)
        self.emit = event_queue(factory.runtime).emitter(at_once=[self.tally, *paced], later=later)
        self._cascade = factory.build(factory.config, experts[None], self.emit)
        self._overridden: LruCache[Overrides, Cascade] = LruCache(capacity)

    @property
    def config(self) -> CtdConfig:
        """The configuration."""
        return self._factory.config

    @property
    def policy(self) -> Policy:
        """The policy that runs."""
        return self._factory.policy

    @property
    def plan(self) -> Plan:
        """The threshold that runs, and its certificate."""
        return self._factory.plan

    @property
    def paced(self) -> PacedRule | None:
        """The rule at its pace; None: no pace is configured, or this is a trial."""
        return self._factory.paced

    @property
    def watch(self) -> Watch | None:
        """Monitors, metrics and audit log; None for a trial."""
        return self._factory.watch

    @property
    def memory(self) -> Memory:
        """What remembers judgements and conversations: this process, or several together."""
        return self._factory.memory

    @property
    def device(self) -> str | None:
        """Device of the base model; None if another process or the operator's code computes the activations."""
        if self.config.source is not None:
            return None
        from ctd_guardrail.activations.huggingface import pick_device  # noqa: PLC0415  # torch

        return str(pick_device(self.config.device))

    @property
    def principal(self) -> PrincipalConfig | None:
        """Where a request names its principal; None: principals are not used."""
        return self.config.principal

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
            principal: The user or tenant of the request, a word or a number; any other value counts as unknown.
            asides: Texts of others beside the conversation; see :meth:`Cascade.check`.

        Returns:
            The decision, also if something went wrong. Like :meth:`Cascade.check`, this raises nothing but the
            cancellation of the calling task.
        """
        known = _principal(principal)
        if overrides is None:
            return await self._cascade.check(messages, principal=known, asides=asides)
        is_cancelled = watch_cancellation()
        try:
            cascade = await self._get(overrides)
        except (OverrideError, ConfigError, InfeasibleBudgetError) as error:
            return self._refuse(Reason.BAD_OVERRIDE, error)
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            return self._refuse(Reason.INTERNAL_ERROR, error)
        except Exception as error:  # noqa: BLE001  # fails closed, whatever it is
            return self._refuse(Reason.INTERNAL_ERROR, error)
        return await cascade.check(messages, principal=known, asides=asides)

    def count_unscreened_call(self, door: str) -> None:
        """Report a call of the main LLM without a verdict."""
        self.emit(UnscreenedCall(door))

    def note_answer(self, answer: str | Mapping[str, Any]) -> None:
        """Remember an answer of the main LLM; see :meth:`Cascade.note_answer`."""
        self._cascade.note_answer(answer)

    async def check_for_self_test(self, messages: Iterable[Mapping[str, Any]]) -> Decision:
        """Decide as configured and without remembered decisions; see :meth:`Cascade.for_self_test`."""
        return await self._cascade.for_self_test().check(messages)

    async def aclose(self) -> None:
        """Release the experts and save the monitors. The base model belongs to the runtime and stays."""
        for expert in self.experts.values():
            await expert.aclose()
        if self.watch is not None:
            await asyncio.to_thread(self.watch.save)

    async def __aenter__(self) -> Self:
        """Return the guard. It is closed at the end of the block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the guard."""
        await self.aclose()

    def _refuse(self, reason: Reason, error: BaseException) -> Decision:
        """Block. The failure policy is for a guard that failed, not for a caller that asks for too much."""
        log.warning("request refused: %s (%s)", reason, type(error).__name__)
        decision = Decision(verdict=Verdict.BLOCK, route=Route.PROBE, reason=reason, mode=self.config.mode)
        self.emit(Decided(decision, time.time(), request_id=REQUEST_ID.get()))
        return decision

    async def _get(self, raw: object) -> Cascade:
        asked = read_overrides(raw, self.config, self._bounds)
        settings = asked.model_copy(update={"max_expert_calls": None})
        cascade = self._overridden.get(settings)
        if cascade is None:
            cascade = await asyncio.to_thread(self._make, settings)
        return cascade if asked.max_expert_calls is None else cascade.limited(asked.max_expert_calls)

    def _make(self, settings: Overrides) -> Cascade:
        changes = settings.model_dump(exclude={"expert"}, exclude_none=True)
        config = self.config.model_copy(update=changes)
        cascade = self._factory.build(config, self.experts[settings.expert], self.emit)
        self._overridden.put(settings, cascade)
        return cascade


def _principal(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None
