"""The action ``ctd_check_input``: a cascade's decision as NeMo's engine-neutral outcome."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome

from ctd_guardrail.decision import Decision, Verdict
from ctd_guardrail.nemo.messages import messages_from_events
from ctd_guardrail.overrides import OverridableCascade

__all__ = ["ACTION_NAME", "make_action", "to_outcome"]

ACTION_NAME: Final = "ctd_check_input"


def make_action(cascade: OverridableCascade) -> Callable[..., Awaitable[RailOutcome]]:
    """Return the action that NeMo calls for every input."""

    # A system action runs in this process even where an actions server is configured.
    @action(name=ACTION_NAME, is_system_action=True)
    async def ctd_check_input(events: list[Any] | None = None, context: dict[str, Any] | None = None) -> RailOutcome:
        try:
            messages = messages_from_events(events, context)
        except Exception:  # noqa: BLE001  # NeMo logs what leaves an action together with the user's text
            # None is no list of messages: the cascade fails it, counts it, and applies the stated policy.
            messages = [None]  # type: ignore[list-item]
        return to_outcome(await cascade.check(messages))

    return ctd_check_input


def to_outcome(decision: Decision) -> RailOutcome:
    """Return the outcome: ``failed`` tells a guard that broke from content that was refused.

    Route and reason are visible to API clients that ask for the log of activated rails. Scores and the threshold are
    not part of it: they would tell an attacker how close they are.
    """
    metadata = {"route": decision.route.value, "reason": decision.reason.value}
    if decision.verdict is Verdict.ALLOW:
        return RailOutcome.allow(reason=decision.reason.value, metadata=metadata)
    if decision.reason.is_failure:
        return RailOutcome.failure(reason=decision.reason.value, metadata=metadata)
    return RailOutcome.block(reason=decision.reason.value, metadata=metadata)
