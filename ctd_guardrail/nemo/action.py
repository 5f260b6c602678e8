"""The action ``ctd_check_input``: the decision of a guard as a ``RailOutcome`` of NeMo."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome

from ctd_guardrail.decision import Decision, Reason
from ctd_guardrail.nemo.catalog import ACTION_NAME
from ctd_guardrail.nemo.client import ClientRequest, read_safely
from ctd_guardrail.nemo.gate import Gate, current_request

__all__ = ["ACTION_NAME", "make_action", "screen", "to_outcome"]


def make_action(gate: Gate) -> Callable[..., Awaitable[RailOutcome]]:
    """Return the action that a Colang runtime calls for every input."""

    # A system action runs in this process, even if an actions server is configured.
    @action(name=ACTION_NAME, is_system_action=True)
    async def ctd_check_input(events: list[Any] | None = None, context: dict[str, Any] | None = None) -> RailOutcome:
        variables = context or {}

        def client() -> ClientRequest:
            # The request came through no guarded door. Variables of the runtime and of the client are mixed here.
            # None of them is judged: only the runtime brings them to the main LLM.
            read = ClientRequest.from_events(events or (), trusts_system=gate.trusts_system)
            return ClientRequest(read.messages, read.asides, variables=variables)

        return await screen(gate, client, user_message=variables.get("user_message"))

    return ctd_check_input


async def screen(gate: Gate | None, client: Callable[[], ClientRequest], *, user_message: object = None) -> RailOutcome:
    """Return the outcome for the current request.

    The action raises only the cancellation of its task: NeMo logs an exception together with the user's text and its
    own keys.

    Args:
        gate: The gate; None for a configuration that was never prepared.
        client: Reads the request of the client, if no door has read it.
        user_message: The last user turn as earlier rails rewrote it.
    """
    if gate is None:
        return RailOutcome.failure(reason=Reason.INTERNAL_ERROR.value)
    request = current_request(gate)
    if request is None:
        # It does not become the current request: the task may run the action again for another conversation.
        request = gate.opened(read_safely(client))
    return to_outcome(await gate.judge(request, user_message=user_message))


def to_outcome(decision: Decision) -> RailOutcome:
    """Return the outcome. ``failed`` distinguishes a guard that failed from content that was refused.

    In shadow mode every outcome allows, and its reason says what was decided. Route and reason are visible to
    API clients that ask for the log of activated rails, and so is the failure policy after a failure. Scores and the
    threshold are hidden: they would show an attacker how close an input is. A receipt proves the refusal: an app sends
    it back as ``metadata.ctd_receipt`` of the message that shows it.
    """
    metadata = {"route": decision.route.value, "reason": decision.reason.value}
    if decision.on_failure is not None:
        metadata["on_failure"] = decision.on_failure.value
    if decision.receipt is not None and decision.is_blocking:
        metadata["receipt"] = decision.receipt
    if not decision.is_blocking:
        return RailOutcome.allow(reason=decision.reason.value, metadata=metadata)
    if decision.reason.is_failure:
        return RailOutcome.failure(reason=decision.reason.value, metadata=metadata)
    return RailOutcome.block(reason=decision.reason.value, metadata=metadata)
