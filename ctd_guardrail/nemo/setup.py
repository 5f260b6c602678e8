"""``init``, which NeMo Guardrails calls when it builds an app from a configuration that imports the rail."""

from __future__ import annotations

from typing import Any

from nemoguardrails.rails.llm.llmrails import LLMRails

from ctd_guardrail.experts.rail.expert import RailCollaborators
from ctd_guardrail.nemo.action import ACTION_NAME, make_action
from ctd_guardrail.nemo.gate import Gate
from ctd_guardrail.nemo.guards import guard_for, refusals_of, section_of
from ctd_guardrail.nemo.iorails import install
from ctd_guardrail.nemo.llmrails import guard_doors, operator_texts
from ctd_guardrail.nemo.server import mark_guarded, refuse_unguarded_configurations

__all__ = ["init"]


def init(app: object) -> None:
    """Build the guard from ``custom_data.ctd``, register its action, and put it in front of the app's main LLM.

    A server of several configurations calls ``init`` of its ``config.py`` with itself, before it reads any
    configuration. Then this makes the rail known to the IORails engine, and lets the server refuse configurations
    without the rail.

    Raises:
        CtdError: The configuration, the policy, the base model or the expert is not usable. NeMo then refuses to
            start.
    """
    if not isinstance(app, LLMRails):
        install()
        refuse_unguarded_configurations()
        return

    def llms() -> dict[str, Any]:
        # The host builds its models after `init`, so the expert looks them up when it runs.
        registered = app.runtime.registered_action_params
        return {**registered.get("llms", {}), "main": registered.get("llm")}

    section = section_of(app.config)
    collaborators = RailCollaborators(config=app.config, llms=llms, llm_task_manager=app.runtime.llm_task_manager)
    gate = Gate(
        guard_for(app.config, section, collaborators),
        section,
        refusals=refusals_of(app.config),
        operator_texts=lambda: operator_texts(app),
    )
    app.register_action(make_action(gate), name=ACTION_NAME)
    guard_doors(app, gate)
    mark_guarded(app, gate)
