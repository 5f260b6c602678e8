"""The section ``custom_data.ctd`` of a NeMo Guardrails configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from ctd_guardrail.decision import FailurePolicy
from ctd_guardrail.experts.config import ExpertConfig
from ctd_guardrail.validation import validate

__all__ = ["SECTION", "CtdConfig", "parse_section"]

SECTION: Final = "custom_data.ctd"

_Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class CtdConfig(BaseModel):
    """What the user sets.

    Attributes:
        policy: Folder that ``ctd-calibrate run`` wrote; relative to the configuration's folder.
        alpha: Budget: largest share of the inputs that the expert may see; None: the policy's.
        delta: Admissible probability that calibration misses the budget; None: the policy's.
        expert: Who judges where delegation pays.
        on_failure: What to do with an input when the guard cannot do its work.
        base_model: Another place of the same base model (id or path); its fingerprint is checked.
        device: Torch device of the base model, or ``auto``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    policy: Path
    alpha: _Share | None = None
    delta: _Share | None = None
    expert: ExpertConfig
    on_failure: FailurePolicy = FailurePolicy.BLOCK
    base_model: Annotated[str, Field(min_length=1)] | None = None
    device: Annotated[str, Field(min_length=1)] = "auto"


def parse_section(section: Mapping[str, Any], *, file: Path | None = None) -> CtdConfig:
    """Validate the section.

    Args:
        section: Value of ``custom_data.ctd``.
        file: The file that holds it, for error messages.

    Raises:
        ConfigError: A key is unknown, missing or of a wrong value; its dotted path is named.
    """
    return validate(CtdConfig, section, file=file, prefix=SECTION)
