"""The NeMo Guardrails configuration for the policy, to copy from the report."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from ctd_guardrail.config.experts import ExpertConfig, LocalExpertConfig, PythonExpertConfig
from ctd_guardrail.policy.manifest import Manifest
from ctd_guardrail.policy.turns import BudgetUnit

__all__ = ["Piece", "snippet"]

# `type` is written separately; `max_refused_rows` is a setting of calibration.
_NOT_THE_RAILS: Final = {"type", "max_refused_rows"}
_ANY_EXPERT: Final[dict[str, Any]] = {"type": "openai", "base_url": "http://127.0.0.1:8000/v1", "model": "judge"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the snippet.

    Attributes:
        text: Text at the policy's own budget.
        field: Field of the explorer that replaces it at another budget; None if it never changes.
    """

    text: str
    field: str | None = None


def snippet(manifest: Manifest, folder: Path, expert: ExpertConfig | None) -> list[Piece]:
    """Return the configuration, in pieces.

    Paths in it start from the parent of the policy's folder.

    Args:
        manifest: Manifest of the policy.
        folder: Folder of the policy.
        expert: The expert that calibration asked; None if scores came with the data.
    """
    before = "import_paths: [ctd_guardrail/nemo]\ncustom_data:\n  ctd:\n"
    before += f"    policy: {_flow(f'./{folder.resolve().name}')}\n"
    section: dict[str, Any] = _ANY_EXPERT
    remark = ""
    if expert is None:
        remark = "    # Insert the expert whose recorded scores the policy was calibrated with:\n"
    elif isinstance(expert, PythonExpertConfig):
        # A report names no code that a reader may copy and run.
        remark = "    # Insert the section `expert` of CALIBRATE.yml:\n"
    else:
        section = {"type": expert.type, **_settings(expert, folder.resolve().parent)}
    after = (
        f"{remark}    expert: {_flow(section)}\n"
        "    on_failure: block  # when the guard cannot do its work: block | probe | allow\n"
        "rails:\n  input:\n    flows: [ctd check input]\n"
    )
    if manifest.performance is not None:
        # The whole setting was certified: the rail refuses another alpha.
        return [Piece(before + after)]
    budget = manifest.in_force
    per_conversation = budget.unit is BudgetUnit.CONVERSATION
    bound = (
        "this number of calls per conversation is made"
        if per_conversation
        else "this share of the inputs reaches the expert"
    )
    return [
        Piece(f"{before}    alpha: "),
        # The explorer shows shares of the turns.
        Piece(f"{budget.alpha:.10g}", None if per_conversation else "alpha_yaml"),
        Piece(f"  # at most {bound} ...\n    delta: {budget.delta:.10g}"),
        Piece(f"  # ... with confidence {100 * (1 - budget.delta):.10g}%\n    guarantee: "),
        Piece("exact", "guarantee_yaml"),
        Piece(f"\n{after}"),
    ]


def _settings(expert: ExpertConfig, folder: Path) -> dict[str, Any]:
    """Return the keys of the expert's section that were set, with paths relative to a folder."""
    settings: dict[str, Any] = expert.model_dump(mode="json", exclude_unset=True, exclude=_NOT_THE_RAILS)
    key = "model" if isinstance(expert, LocalExpertConfig) else "config"
    if Path(str(settings.get(key, ""))).is_absolute():
        settings[key] = os.path.relpath(settings[key], folder)
    return settings


def _flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")
