"""The action ``ctd_check_input``: a cascade's decision as NeMo's engine-neutral outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome

from ctd_guardrail.decision import Decision, Reason
from ctd_guardrail.nemo.catalog import ACTION_NAME
from ctd_guardrail.nemo.guards import Guard
from ctd_guardrail.nemo.messages import messages_from_events

__all__ = ["ACTION_NAME", "OVERRIDES", "make_action", "screen", "to_outcome"]

OVERRIDES: Final = "ctd"
"""The context variable of a request that holds its overrides."""


def make_action(guard: Guard) -> Callable[..., Awaitable[RailOutcome]]:
    """Return the action that a Colang runtime calls for every input."""

    # A system action runs in this process even where an actions server is configured.
    @action(name=ACTION_NAME, is_system_action=True)
    async def ctd_check_input(events: list[Any] | None = None, context: dict[str, Any] | None = None) -> RailOutcome:
        variables = context or {}
        where = guard.principal
        principal = None if where is None or where.variable is None else variables.get(where.variable)
        return await screen(
            guard, lambda: messages_from_events(events, context), variables.get(OVERRIDES), principal=principal
        )

    return ctd_check_input


async def screen(
    guard: Guard | None,
    messages: Callable[[], list[dict[str, Any]]],
    overrides: object = None,
    *,
    principal: object = None,
) -> RailOutcome:
    """Return a guard's outcome for what a host hands over.

    Nothing leaves an action but the cancellation of its task: NeMo logs an exception together with the user's text
    and its own keys.

    Args:
        guard: The guard; None, where a host asks for a configuration that was never prepared.
        messages: Reads the messages.
        overrides: Settings for this request alone, as it states them.
        principal: On whose behalf, as the request states it.
    """
    if guard is None:
        return RailOutcome.failure(reason=Reason.INTERNAL_ERROR.value)
    try:
        read = messages()
    except Exception:  # noqa: BLE001  # see above
        # None is no message: the guard fails it, counts it, and blocks.
        read = [None]  # type: ignore[list-item]
    return to_outcome(await guard.check(read, overrides, principal=principal))


def to_outcome(decision: Decision) -> RailOutcome:
    """Return the outcome: ``failed`` tells a guard that broke from content that was refused.

    In shadow mode every outcome allows, and its reason says what was decided. Route, reason and, where the guard could
    not do its work, the failure policy are visible to API clients that ask for the log of activated rails. Scores and
    the threshold are not part of it: they would tell an attacker how close they are.
    """
    metadata = {"route": decision.route.value, "reason": decision.reason.value}
    if decision.on_failure is not None:
        metadata["on_failure"] = decision.on_failure.value
    if not decision.is_blocking:
        return RailOutcome.allow(reason=decision.reason.value, metadata=metadata)
    if decision.reason.is_failure:
        return RailOutcome.failure(reason=decision.reason.value, metadata=metadata)
    return RailOutcome.block(reason=decision.reason.value, metadata=metadata)
