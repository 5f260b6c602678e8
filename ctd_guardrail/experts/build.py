"""From the ``expert`` section of a configuration to the expert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from ctd_guardrail.config.experts import (
    ExpertConfig,
    LocalExpertConfig,
    OpenAIExpertConfig,
    PythonExpertConfig,
    RailExpertConfig,
)
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.experts.bounded.bounded_expert import BoundedExpert
from ctd_guardrail.experts.bounded.bulkhead import Bulkhead
from ctd_guardrail.experts.protocol import Expert
from ctd_guardrail.runtime.runtime import Runtime

if TYPE_CHECKING:
    from ctd_guardrail.experts.rail.expert import RailCollaborators

__all__ = ["build_expert"]

# Inputs that may wait for each call under way: a fast expert serves so many within its deadline, and more would only
# fail later.
_WAITING: Final = 4


def build_expert(
    config: ExpertConfig,
    *,
    rail_collaborators: RailCollaborators | None = None,
    base_dir: Path | None = None,
    runtime: Runtime | None = None,
) -> BoundedExpert:
    """Build the expert of a configuration, with the limits of its own section: concurrency and deadline.

    A local expert is loaded here, and code of the operator runs: both block. Each kind is imported only if it is used:
    one needs torch, another NeMo Guardrails.

    Args:
        config: The ``expert`` section.
        rail_collaborators: Models and prompts of the host, for a ``rail`` that names no folder of its own.
        base_dir: Folder that relative paths start from; None: the current one.
        runtime: Runs calls and shares models; None: the runtime of the process.

    Raises:
        ConfigError: A value is wrong, or something that it names is missing.
        DependencyError: ``package:NAME`` is not installed.
    """
    expert = _build(config, rail_collaborators, base_dir or Path(), runtime)
    if isinstance(config, LocalExpertConfig):
        # A local expert has its own queue, and needs several inputs in it to form batches.
        return BoundedExpert(expert)
    bulkhead = Bulkhead(config.max_concurrency, _WAITING * config.max_concurrency)
    return BoundedExpert(expert, bulkhead=bulkhead, timeout_s=config.timeout_s)


def _build(
    config: ExpertConfig, rail_collaborators: RailCollaborators | None, folder: Path, runtime: Runtime | None
) -> Expert:
    match config:
        case OpenAIExpertConfig():
            from ctd_guardrail.experts.openai.expert import OpenAIExpert  # noqa: PLC0415  # see above

            return OpenAIExpert(config, runtime=runtime)
        case LocalExpertConfig():
            from ctd_guardrail.experts.local.expert import LocalExpert  # noqa: PLC0415  # see above

            path = folder / config.model
            return LocalExpert(
                config.model_copy(update={"model": str(path)}) if path.is_dir() else config, runtime=runtime
            )
        case PythonExpertConfig():
            from ctd_guardrail.experts.python import PythonExpert  # noqa: PLC0415  # code of the operator

            return PythonExpert(config, folder)
        case RailExpertConfig():
            return _build_rail(config, rail_collaborators, folder)


def _build_rail(config: RailExpertConfig, collaborators: RailCollaborators | None, folder: Path) -> Expert:
    from ctd_guardrail.experts.rail.expert import RailExpert  # noqa: PLC0415  # see above

    if config.config is not None:
        return RailExpert.from_folder(config, folder / config.config)
    if collaborators is None:
        raise ConfigError(
            "a rail needs the models and prompts of a NeMo Guardrails configuration",
            key="expert.config",
            hint="Name the folder of that configuration",
        )
    return RailExpert(config, collaborators)
