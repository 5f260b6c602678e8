"""Any input rail of NeMo Guardrails as an expert: an input that it blocks is unsafe.

NeMo's catalog compiles the rail from its flow string, with the models and prompts of a NeMo configuration. The rail
runs the same on both of NeMo's engines and offline.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nemoguardrails import RailsConfig
from nemoguardrails.guardrails.compiled_rail import (
    CompiledRail,
    RailCompilationError,
    RailDependencies,
    RailExecution,
    compile_rail,
)
from nemoguardrails.llm.models.initializer import init_llm_model
from nemoguardrails.llm.prompts import get_prompt
from nemoguardrails.llm.taskmanager import LLMTaskManager
from nemoguardrails.logging.processing_log import processing_log_var
from nemoguardrails.manifests import RailDirection, default_rail_catalog, parse_configured_surface
from nemoguardrails.rails.llm.config import Model
from pydantic import ValidationError

from ctd_guardrail.config.experts import RailExpertConfig
from ctd_guardrail.errors import ConfigError, ExpertError, ExpertUnavailableError, ExpertVerdictError
from ctd_guardrail.experts.prompt import fingerprint
from ctd_guardrail.experts.protocol import ExpertScore
from ctd_guardrail.experts.rail.models import Heard, listening, provider_error
from ctd_guardrail.experts.rail.verdicts import RailVerdicts
from ctd_guardrail.text.conversation import Conversation

__all__ = ["RailCollaborators", "RailExpert"]

# Settings of the address of a rail's service, which do not affect its answers.
_ADDRESSES: Final = ("url", "endpoint", "key", "key_env_var", "token", "timeout")


@dataclass(frozen=True, slots=True)
class RailCollaborators:
    """The parts of NeMo Guardrails that a rail needs.

    Attributes:
        config: The configuration with the rail's models, prompts and settings.
        llms: Returns the models by their type, ``main`` among them. It is called at every run, because hosts build
            their models after they have called the plug-ins.
        llm_task_manager: Renders and parses prompts.
    """

    config: RailsConfig
    llms: Callable[[], Mapping[str, Any]]
    llm_task_manager: LLMTaskManager


class RailExpert:
    """Runs the rail on the whole conversation: blocked is 1, allowed is 0.

    Most rails look at the last user turn only. A conversation of several turns is therefore given to the rail as one
    user turn with a ``role: text`` line for each turn.

    Args:
        config: The flow.
        collaborators: Models and prompts of the surrounding configuration, or of a folder.

    Raises:
        ConfigError: The rail does not exist, lacks a model, prompt or package, has a prompt without a parser of
            verdicts, or rewrites instead of judging.
    """

    def __init__(self, config: RailExpertConfig, collaborators: RailCollaborators) -> None:
        self._collaborators = collaborators
        declared = dict.fromkeys(model.type for model in collaborators.config.models)
        try:
            rail = compile_rail(config.flow, RailDirection.INPUT, self._dependencies(declared))
        except RailCompilationError as error:
            raise ConfigError(str(error), key="expert.flow") from error
        if rail.transform_target is not None:
            raise ConfigError(
                f"{config.flow!r} rewrites the message instead of judging it",
                key="expert.flow",
                hint="Use a rail that blocks, such as content safety check input",
            )
        _check_requirements(config.flow, collaborators.config)
        self._verdicts = RailVerdicts(rail.surface.action.name, _parser(rail, collaborators.config))
        self._rail = rail
        self._name = f"rail {config.flow!r}"
        self._identity = f"rail:{config.flow}:{_fingerprint(rail, collaborators.config)}"

    @classmethod
    def from_folder(cls, config: RailExpertConfig, folder: Path) -> RailExpert:
        """Build the expert outside of NeMo Guardrails, with the models and prompts of a configuration folder.

        Raises:
            ConfigError: As above, or the folder is not a NeMo configuration, or a model cannot be built.
        """
        rails_config = _read_folder(folder)
        llms: dict[str, Any] = {}
        expert = cls(config, RailCollaborators(rails_config, lambda: llms, LLMTaskManager(rails_config)))
        # Only the rail's own models: others in the folder may need packages that are not installed here.
        llms.update({model.type: _build_llm(model) for model in _models(expert._rail, rails_config)})
        return expert

    @property
    def identity(self) -> str:
        """Kind, flow, and a hash of the rail's prompts, models and settings."""
        return self._identity

    async def score(self, conversation: Conversation) -> ExpertScore:
        """Return 1.0 if the rail blocks the conversation, and 0.0 if it allows it.

        Raises:
            ExpertUnavailableError: The rail or its model failed.
            ExpertVerdictError: Its model's answer is not a verdict in the rail's own form, or its endpoint refused
                this conversation.
        """
        heard = Heard()
        llms = listening(self._collaborators.llms(), heard)
        rail = self._rail.with_runtime_dependencies(self._dependencies(llms))
        messages = [{"role": "user", "content": conversation.plain_text()}]
        try:
            execution = await rail.execute(messages)
        except ExpertError:
            raise
        except Exception as error:  # noqa: BLE001  # NeMo passes on what its providers raise with an HTTP status
            raise provider_error(error, subject=self._name) from None
        _report(execution)
        return self._read(execution, heard)

    async def aclose(self) -> None:
        """Release nothing: the models belong to the host."""

    def _dependencies(self, llms: Mapping[str, Any]) -> RailDependencies:
        collaborators = self._collaborators
        return RailDependencies(llms=llms, llm_task_manager=collaborators.llm_task_manager, config=collaborators.config)

    def _read(self, execution: RailExecution, heard: Heard) -> ExpertScore:
        outcome, calls = execution.outcome, execution.llm_calls
        if outcome.failed and heard.error is not None:
            raise provider_error(heard.error, subject=self._name)
        if heard.finish_reason == "content_filter":
            raise ExpertVerdictError(
                f"a content filter stopped the answer of the model of {self._name} (finish_reason content_filter)",
                hint="Switch the content filter of its deployment off, or leave expert_bad_verdict at block",
            )
        answers = [call.completion for call in calls if call.completion is not None]
        if answers and (outcome.failed or not self._is_verdict(answers[-1], is_blocked=outcome.is_blocked)):
            raise ExpertVerdictError(
                f"{self._name} got an answer from its model that is not a verdict",
                hint="Check the rail's prompt and its output_parser, and the forms of verdicts in docs/experts.md",
            )
        if outcome.failed:
            raise ExpertUnavailableError(f"{self._name} failed", hint="Look into the log of NeMo Guardrails")
        if outcome.is_transform:
            raise ExpertVerdictError(
                f"{self._name} rewrote the message instead of judging it",
                hint="Use a rail that blocks, such as content safety check input",
            )
        return ExpertScore(
            p_unsafe=1.0 if outcome.is_blocked else 0.0,
            attempts=sum(not call.from_cache for call in calls) if calls else 1,
            tokens=sum(call.total_tokens or 0 for call in calls) or None,
        )

    def _is_verdict(self, completion: str, *, is_blocked: bool) -> bool:
        parsers = self._collaborators.llm_task_manager.output_parsers
        return self._verdicts.include(completion, is_blocked=is_blocked, registered=parsers)


def _report(execution: RailExecution) -> None:
    """Add the rail's model calls to the log of the request, from which hosts make their reports."""
    log = processing_log_var.get()
    if log is not None:
        log.extend({"type": "llm_call_info", "timestamp": time.time(), "data": call} for call in execution.llm_calls)


def _read_folder(folder: Path) -> RailsConfig:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", key="expert.config", hint="Name a NeMo Guardrails folder")
    try:
        config: RailsConfig = RailsConfig.from_path(str(folder))
    except Exception as error:
        raise ConfigError(
            f"NeMo Guardrails cannot read the configuration ({type(error).__name__}: {_first_problem(error)})",
            file=folder,
            key="expert.config",
        ) from error
    return config


def _build_llm(model: Model) -> Any:
    arguments = dict(model.parameters or {})
    key = os.environ.get(model.api_key_env_var) if model.api_key_env_var else None
    if key:
        arguments["api_key"] = key
    try:
        return init_llm_model(model.model or "", model.engine, arguments, mode=model.mode)
    except Exception as error:
        raise ConfigError(
            f"NeMo Guardrails cannot build the model of type {model.type!r} ({type(error).__name__})",
            key="expert.config",
            hint="Check its engine and parameters in the NeMo configuration",
        ) from error


def _check_requirements(flow: str, config: RailsConfig) -> None:
    """Let NeMo check whether a configuration with this input rail lacks a model or prompt."""
    settings = {"models": config.models, "prompts": config.prompts, "rails": {"input": {"flows": [flow]}}}
    try:
        RailsConfig.model_validate(settings)
    except Exception as error:
        raise ConfigError(
            f"{flow!r} cannot run: {_first_problem(error)}",
            key="expert.flow",
            hint="Add it to the NeMo configuration that the rail uses",
        ) from error


def _first_problem(error: Exception) -> str:
    # Pydantic would print the whole input, keys of model providers included.
    return error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)


def _tasks(rail: CompiledRail, config: RailsConfig) -> list[str]:
    """Return the rail's prompt tasks: named after it, or by a parameter of the flow."""
    name, parameters = parse_configured_surface(rail.flow)
    tasks = {prompt.task for prompt in config.prompts or []}
    return sorted(t for t in tasks if t.split(" ")[0] == name.replace(" ", "_") or t in parameters.values())


def _parser(rail: CompiledRail, config: RailsConfig) -> str | None:
    """Return the name of the parser that the rail reads its model's answer with; None: its prompt names none."""
    name, parameters = parse_configured_surface(rail.flow)
    base = name.replace(" ", "_")
    # NeMo still takes the bare name of a variant for a task.
    own = [f"{base} ${key}={value}" for key, value in parameters.items()] + list(parameters.values())
    tasks = {prompt.task for prompt in config.prompts or []}
    task = next((task for task in own or [base] if task in tasks), None)
    return None if task is None else get_prompt(config, task).output_parser


def _models(rail: CompiledRail, config: RailsConfig) -> list[Model]:
    """Return the models that the rail asks."""
    name, parameters = parse_configured_surface(rail.flow)
    bound = [
        binding.value if binding.kind == "literal" else parameters.get(str(binding.key))
        for binding in rail.surface.bindings
        if binding.resource == "model"
    ]
    if bound:
        return [model for model in config.models if model.type in bound]
    if not _tasks(rail, config):
        return []
    # A rail with a prompt that names no model takes the first of these.
    fallbacks = [*parameters.values(), name.replace(" ", "_"), "main"]
    return [model for kind in fallbacks for model in config.models if model.type == kind][:1]


def _fingerprint(rail: CompiledRail, config: RailsConfig) -> str:
    """Return a hash of everything that the rail's verdict depends on: prompts, models and settings, no addresses."""
    prompts = [get_prompt(config, task).model_dump_json() for task in _tasks(rail, config)]
    models = [model.model or "" for model in _models(rail, config)]
    return fingerprint(*prompts, *models, _settings(rail, config))


def _settings(rail: CompiledRail, config: RailsConfig) -> str:
    """Return the rail's section of ``rails.config`` as canonical JSON."""
    manifests = default_rail_catalog().manifests.values()
    schema = next((manifest.config_schema for manifest in manifests if rail.surface in manifest.surfaces), None)
    section = getattr(config.rails.config, schema.key, None) if schema else None
    return "" if section is None else fingerprint(str(_without_addresses(_dump(section))))


def _dump(section: Any) -> Any:
    if isinstance(section, Mapping):
        return {str(key): _dump(value) for key, value in section.items()}
    return section.model_dump(mode="json") if hasattr(section, "model_dump") else section


def _without_addresses(value: Any) -> Any:
    if isinstance(value, Mapping):
        kept = {key: _without_addresses(v) for key, v in value.items() if not _is_address(key)}
        return dict(sorted(kept.items()))
    if isinstance(value, list):
        return [_without_addresses(item) for item in value]
    return value


def _is_address(key: str) -> bool:
    return key in _ADDRESSES or key.endswith(tuple(f"_{name}" for name in _ADDRESSES))
