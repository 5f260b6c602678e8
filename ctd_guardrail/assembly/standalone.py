"""The guard of a configuration folder without NeMo Guardrails around it, for the command line and the sidecar."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ctd_guardrail.assembly.assemble import assemble
from ctd_guardrail.assembly.folder import RailFolder, read_folder
from ctd_guardrail.assembly.overrides import Guard
from ctd_guardrail.config.experts import ExpertConfig, RailExpertConfig
from ctd_guardrail.config.section import CtdConfig
from ctd_guardrail.policy.plan import Plan, plan

__all__ = ["StandaloneGuard", "has_base_model_of", "load_guard", "standalone_config"]


@dataclass(frozen=True, slots=True)
class StandaloneGuard:
    """A guard and what it was made from.

    Attributes:
        rail: The folder.
        planned: What its section amounts to.
        cascade: The guard.
    """

    rail: RailFolder
    planned: Plan
    cascade: Guard


def load_guard(folder: Path, *, in_service: bool = False) -> StandaloneGuard:
    """Read, check and load a configuration folder. Blocks while the base model is loaded.

    Args:
        folder: NeMo Guardrails configuration folder.
        in_service: Whether its inputs are traffic, for monitors, metrics and audit log; not those of a trial.

    Raises:
        CtdError: The configuration, the policy, the base model or the expert is not usable.
    """
    rail = read_folder(folder)
    planned = plan(rail.config, folder=rail.path)
    cascade = assemble(standalone_config(rail), folder=rail.path, in_service=in_service)
    return StandaloneGuard(rail, planned, cascade)


def has_base_model_of(folder: Path, guard: StandaloneGuard) -> bool:
    """Return whether a configuration folder, as it reads now, names the base model that a guard has loaded.

    Raises:
        CtdError: The configuration or the policy is not usable.
    """
    rail = read_folder(folder)
    planned = plan(rail.config, folder=rail.path)
    return _base_model(rail, planned) == _base_model(guard.rail, guard.planned)


def _base_model(rail: RailFolder, planned: Plan) -> tuple[object, ...]:
    return planned.policy.manifest.activations, rail.config.base_model, rail.config.device, rail.config.source


def standalone_config(rail: RailFolder) -> CtdConfig:
    """Return the section as it reads outside of NeMo: a rail as expert takes its models from this very folder."""

    def own_folder(expert: ExpertConfig) -> ExpertConfig:
        if not isinstance(expert, RailExpertConfig) or expert.config is not None:
            return expert
        return expert.model_copy(update={"config": rail.path.absolute()})

    experts = {name: own_folder(expert) for name, expert in rail.config.experts.items()}
    return rail.config.model_copy(update={"expert": own_folder(rail.config.expert), "experts": experts})
