"""What tests look up inside an app of NeMo Guardrails."""

from typing import Any

from nemoguardrails import LLMRails

__all__ = ["gate_of", "guard_of"]


def gate_of(app: LLMRails) -> Any:
    """Return the gate in front of an app's main LLM."""
    action: Any = app.runtime.action_dispatcher.get_action("ctd_check_input")
    return next(cell.cell_contents for cell in action.__closure__ if hasattr(cell.cell_contents, "guard"))


def guard_of(app: LLMRails) -> Any:
    """Return the guard behind an app's gate."""
    return gate_of(app).guard
