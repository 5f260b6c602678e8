"""The models of an LLMRails app. Each is behind the gate from its registration on."""

from __future__ import annotations

from typing import Any, Final

from nemoguardrails.actions.llm.generation import LLMGenerationActions
from nemoguardrails.actions.v2_x.generation import LLMGenerationActionsV2dotx
from nemoguardrails.rails.llm.llmrails import LLMRails

from ctd_guardrail.nemo.gate import Gate
from ctd_guardrail.nemo.guarded_model import GuardedModel

__all__ = ["guard_models", "guarded_function", "is_guarded"]


def _answering() -> frozenset[str]:
    """Return the parameters by which the host passes a separate model to an action that answers the user."""
    kinds = (LLMGenerationActions, LLMGenerationActionsV2dotx)
    names = {name for kind in kinds for name in dir(kind) if hasattr(getattr(kind, name), "action_meta")}
    named = {getattr(kind, name).action_meta["name"] for kind in kinds for name in names if hasattr(kind, name)}
    return frozenset(f"{name}_llm" for name in names | named)


_MAIN: Final = "llm"
_ANSWERING: Final = _answering()
# Where versions of the host keep the actions that answer. Reading the public name warns.
_ACTIONS: Final = ("_llm_generation_actions", "llm_generation_actions")


def guard_models(app: LLMRails, gate: Gate) -> None:
    """Put the gate in front of an app's main LLM and of the models that answer in its place, also of later ones."""
    register = app.runtime.register_action_param

    def register_action_param(name: str, value: Any) -> None:
        if name != _MAIN and name not in _ANSWERING:
            register(name, value)
            return
        guarded = value if is_guarded(value, gate) else _guarded(value, gate)
        if name == _MAIN:
            app.llm = guarded
            # Absent while the host builds its models: it builds them with the model of the app, which is guarded.
            for actions in map(vars(app).get, _ACTIONS):
                if actions is not None:
                    actions.llm = guarded
        register(name, guarded)

    setattr(app.runtime, "register_action_param", register_action_param)  # noqa: B010  # a method, for mypy
    if app.llm is not None:
        app.llm = _guarded(app.llm, gate)


def is_guarded(model: Any, gate: Gate) -> bool:
    """Return whether a model is behind this gate."""
    return isinstance(model, GuardedModel) and model.gate is gate


def guarded_function(function: Any, gate: Gate) -> Any:
    """Return the function that an app uses in place of the main LLM, behind the gate."""

    async def passthrough(context: dict[str, Any], events: list[Any]) -> Any:
        if not await gate.admits(context, events):
            return gate.words()
        return await function(context=context, events=events)

    passthrough.ctd_gate = gate  # type: ignore[attr-defined]  # distinguishes it from the function of the app
    return passthrough


def _guarded(model: Any, gate: Gate) -> GuardedModel:
    return GuardedModel(model.guarded if isinstance(model, GuardedModel) else model, gate)
