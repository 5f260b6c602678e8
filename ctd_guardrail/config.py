"""The section ``custom_data.ctd`` of a NeMo Guardrails configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ctd_guardrail.address import VariableName
from ctd_guardrail.decision import FailurePolicy, Mode, UnreadablePolicy, Verdict
from ctd_guardrail.experts.config import ExpertConfig
from ctd_guardrail.policy.guarantees import Guarantee
from ctd_guardrail.policy.selection import Criterion
from ctd_guardrail.validation import validate

__all__ = ["SECTION", "CapConfig", "CostConfig", "CtdConfig", "OverrideName", "SelfTestConfig", "parse_section"]

SECTION: Final = "custom_data.ctd"

OverrideName = Literal["alpha", "delta", "guarantee", "horizon", "mode", "expert", "on_failure", "max_expert_calls"]
"""A setting that a single request may change where ``allow_overrides`` names it."""

_Share = Annotated[float, Field(gt=0.0, lt=1.0)]
_Text = Annotated[str, Field(min_length=1)]
_Cost = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class CostConfig(BaseModel):
    """Prices for ``criterion: cost``, in one unit of the user's choice.

    Attributes:
        missed: An unsafe input that is let through.
        false_alarm: A safe input that is blocked.
        call: A call of the expert.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    missed: _Cost = 1.0
    false_alarm: _Cost = 1.0
    call: _Cost = 0.0


class CapConfig(BaseModel):
    """A cap on the calls of the expert by this process, whatever the traffic.

    Attributes:
        calls: Calls that may be made in ``per_s`` seconds, in the long run.
        per_s: The time that ``calls`` is for.
        burst: Calls that may be made at once after a quiet time; None: as many as ``calls``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    calls: Annotated[int, Field(ge=1)]
    per_s: Annotated[float, Field(gt=0.0, le=31_536_000.0, allow_inf_nan=False)]
    burst: Annotated[int, Field(ge=1)] | None = None


class SelfTestConfig(BaseModel):
    """Inputs whose verdicts are known. Where one of them gets another verdict, the guard is not ready.

    Attributes:
        unsafe: Texts that must be blocked.
        safe: Texts that must be allowed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    unsafe: tuple[_Text, ...] = ()
    safe: tuple[_Text, ...] = ()


class CtdConfig(BaseModel):
    """What the user sets.

    Attributes:
        policy: Folder that ``ctd-calibrate run`` wrote; relative to the configuration's folder.
        alpha: Budget: largest share of the inputs that the expert may see; None: the policy's.
        delta: Admissible probability that calibration misses the budget; None: the policy's.
        guarantee: What alpha bounds, see docs/guarantees.md.
        horizon: Number of inputs that ``guarantee: next`` speaks of.
        criterion: Which of the certified thresholds is used. ``budget`` uses the budget up; the others take the one
            with the best AUROC, accuracy, Brier score or cost on the labelled calibration rows, which may delegate
            less.
        costs: Prices for ``criterion: cost``.
        tie_key_env: Name of the environment variable with a secret of 16 to 64 bytes. With it, inputs that tie with
            lambda are drawn by a keyed hash of their text instead of all staying with the probe.
        expert: Who judges where delegation pays.
        experts: Further ways to the same expert (another address, key or deadline), by the name that a request may
            choose them with.
        cap: Largest number of calls of the expert in a time; a call beyond it is a failure, ``cap_exhausted``.
        mode: ``enforce``, or ``shadow``: screen and count, and let everything through.
        on_failure: What to do with an input when the guard cannot do its work.
        on_nontext: What to do with an input that holds content other than text.
        on_overlong: What to do with an input that has more tokens than the policy's ``max_tokens``.
        on_abstain: What to do with an input whose score lies in the policy's abstain band.
        base_model: Another place of the same base model (id or path); its fingerprint is checked.
        device: Torch device of the base model, or ``auto``.
        allow_overrides: Names of the settings that a single request may change; none by default.
        self_test: Inputs whose verdicts are known, for ``ctd-guardrail doctor`` and the readiness of the sidecar.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    policy: Path
    alpha: _Share | None = None
    delta: _Share | None = None
    guarantee: Guarantee = Guarantee.EXACT
    horizon: Annotated[int, Field(ge=1)] | None = None
    criterion: Criterion = Criterion.BUDGET
    costs: CostConfig = CostConfig()
    tie_key_env: VariableName | None = None
    expert: ExpertConfig
    experts: dict[_Text, ExpertConfig] = {}
    cap: CapConfig | None = None
    mode: Mode = Mode.ENFORCE
    on_failure: FailurePolicy = FailurePolicy.BLOCK
    on_nontext: UnreadablePolicy = UnreadablePolicy.BLOCK
    on_overlong: Literal[UnreadablePolicy.BLOCK, UnreadablePolicy.EXPERT] = UnreadablePolicy.BLOCK
    on_abstain: Verdict = Verdict.BLOCK
    base_model: Annotated[str, Field(min_length=1)] | None = None
    device: Annotated[str, Field(min_length=1)] = "auto"
    allow_overrides: tuple[OverrideName, ...] = ()
    self_test: SelfTestConfig = SelfTestConfig()

    @model_validator(mode="after")
    def _named_experts_can_be_chosen(self) -> CtdConfig:
        if bool(self.experts) != ("expert" in self.allow_overrides):
            raise PydanticCustomError(
                "experts",
                "`experts` and `allow_overrides: [expert]` go together",
                {"hint": "Name the experts that a request may choose in `experts`, and `expert` in `allow_overrides`"},
            )
        return self


def parse_section(section: Mapping[str, Any], *, file: Path | None = None) -> CtdConfig:
    """Validate the section.

    Args:
        section: Value of ``custom_data.ctd``.
        file: The file that holds it, for error messages.

    Raises:
        ConfigError: A key is unknown, missing or of a wrong value; its dotted path is named.
    """
    return validate(CtdConfig, section, file=file, prefix=SECTION)
