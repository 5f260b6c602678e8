"""The rail on NeMo's IORails engine: the action that its catalog names, and the guard of each configuration."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final

from nemoguardrails import RailsConfig
from nemoguardrails.actions import action
from nemoguardrails.actions.rail_outcome import RailOutcome
from nemoguardrails.llm.taskmanager import LLMTaskManager

from ctd_guardrail.experts.rail import RailCollaborators
from ctd_guardrail.nemo import catalog
from ctd_guardrail.nemo.action import ACTION_NAME, screen
from ctd_guardrail.nemo.guards import Guard, guard_for
from ctd_guardrail.nemo.messages import messages_from_iorails

__all__ = ["ctd_check_input", "install"]

# IORails hands a rail its configuration, and makes a copy of it for each synchronous call. Keyed by the object, for
# a configuration has no hash of its own; an entry goes when its configuration goes.
_GUARDS: Final[dict[int, Guard]] = {}

_llms: ContextVar[Mapping[str, Any]] = ContextVar("ctd_iorails_llms")


def install() -> None:
    """Make ``ctd check input`` known to the IORails engine of this process. Calling it again changes nothing.

    Raises:
        HostError: This version of NeMo Guardrails keeps its catalog in another way.
    """
    catalog.install(_prepare)


@action(name=ACTION_NAME, is_system_action=True)
async def ctd_check_input(
    config: RailsConfig,
    user_message: object = None,
    events: list[Any] | None = None,
    llms: Mapping[str, Any] | None = None,
) -> RailOutcome:
    """Screen the conversation up to the user turn under check."""
    _llms.set(llms or {})
    return await screen(_GUARDS.get(id(config)), lambda: messages_from_iorails(events, user_message))


def _prepare(config: RailsConfig) -> None:
    """Build the guard of a configuration, once."""
    if id(config) not in _GUARDS:
        collaborators = RailCollaborators(config=config, llms=_llms.get, llm_task_manager=LLMTaskManager(config))
        _GUARDS[id(config)] = guard_for(config, collaborators)
        weakref.finalize(config, _GUARDS.pop, id(config), None)
