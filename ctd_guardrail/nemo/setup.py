"""``init``: what NeMo Guardrails calls when it builds an app from a configuration that imports the rail."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctd_guardrail.assemble import assemble
from ctd_guardrail.config import SECTION, parse_section
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.experts.rail import RailCollaborators
from ctd_guardrail.nemo.action import ACTION_NAME, make_action

if TYPE_CHECKING:
    from nemoguardrails import LLMRails, RailsConfig

__all__ = ["config_folder", "init"]


def init(app: LLMRails) -> None:
    """Build the cascade from ``custom_data.ctd`` and register its action.

    Raises:
        CtdError: The configuration, the policy, the base model or the expert is not usable. NeMo then refuses to
            start.
    """
    config: RailsConfig = app.config
    section = config.custom_data.get("ctd")
    if section is None:
        raise ConfigError(
            "the section is missing",
            file=config.config_path,
            key=SECTION,
            hint="Add it at the top level of config.yml; `ctd-guardrail validate DIR` finds misplaced sections",
        )

    def llms() -> dict[str, Any]:
        # The host makes its models after it has called `init`, so they are looked up when the expert runs.
        registered = app.runtime.registered_action_params
        return {**registered.get("llms", {}), "main": registered.get("llm")}

    collaborators = RailCollaborators(
        config=config,
        llms=llms,
        llm_task_manager=app.runtime.llm_task_manager,
    )
    cascade = assemble(parse_section(section), folder=config_folder(config), rail_collaborators=collaborators)
    app.register_action(make_action(cascade), name=ACTION_NAME)


def config_folder(config: RailsConfig) -> Path:
    """Return the folder that relative paths start from: the configuration's, or the current one."""
    if not config.config_path:
        return Path.cwd()
    path = Path(config.config_path.split(",")[0].strip())
    return path if path.is_dir() else path.parent
