"""The section ``custom_data.ctd`` of a NeMo Guardrails configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from ctd_guardrail.config.address import VariableName
from ctd_guardrail.config.experts import ExpertConfig, LocalExpertConfig, OpenAIExpertConfig
from ctd_guardrail.config.limits import BreakerConfig, CapConfig, CapStoreConfig, PrincipalConfig
from ctd_guardrail.config.observability import AuditLogConfig, MonitorConfig, RolloutConfig
from ctd_guardrail.config.on_failure import OnFailureByCause
from ctd_guardrail.config.override_bounds import OverrideBoundsConfig
from ctd_guardrail.config.source import VllmSourceConfig
from ctd_guardrail.config.validation import validate
from ctd_guardrail.decision import Mode, OnFailure, OnHistory, OnUnreadable, RefusedTurns, Verdict
from ctd_guardrail.policy.guarantees import Guarantee
from ctd_guardrail.policy.selection import Criterion

__all__ = ["SECTION", "CostConfig", "CtdConfig", "OverrideName", "SelfTestConfig", "parse_section"]

SECTION: Final = "custom_data.ctd"

OverrideName = Literal["alpha", "delta", "guarantee", "horizon", "mode", "expert", "on_failure", "max_expert_calls"]
"""A setting that a single request may change where ``allow_overrides`` names it."""

_Share = Annotated[float, Field(gt=0.0, lt=1.0)]
_Text = Annotated[str, Field(min_length=1)]
_Seconds = Annotated[float, Field(gt=0.0, le=3600.0, allow_inf_nan=False)]
_Cost = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, Mapping | CapConfig) else value


def _form_of(value: object) -> str:
    return "by_cause" if isinstance(value, Mapping | OnFailureByCause) else "for_all"


_OnFailure = Annotated[
    Annotated[OnFailure, Tag("for_all")] | Annotated[OnFailureByCause, Tag("by_cause")], Discriminator(_form_of)
]
_Caps = Annotated[tuple[CapConfig, ...], BeforeValidator(_as_tuple)]


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
            less, and next to nothing where no gain is clear.
        costs: Prices for ``criterion: cost``.
        tie_key_env: Name of the environment variable with a secret of 16 to 64 bytes. With it, inputs that tie with
            lambda are drawn by a keyed hash of their text instead of all staying with the probe.
        expert: Who judges where delegation pays.
        experts: Further ways to the same expert (another address, key or deadline), by the name that a request may
            choose them with.
        expert_enabled: The kill switch: false makes no call of the expert; what would have been delegated is a
            failure, ``expert_disabled``.
        expert_attempts: Calls that may be made for one input where a fault is transient; experts of type ``openai``.
        breaker: When an expert that fails is left alone, a failure, ``breaker_open``; null: never.
        cap: What the expert may cost in a time, one cap or several; what goes beyond is a failure, ``cap_exhausted``.
        cap_store: Where several processes keep these caps together; None: each process has its own.
        principal: Where a request says on whose behalf it is made, for caps of each principal.
        deadline_s: Seconds in which every request gets its verdict: queue, forward pass and expert. What takes longer
            is a failure, ``deadline``.
        mode: ``enforce``, or ``shadow``: screen and count, and let everything through.
        on_failure: What to do with an input when the guard cannot do its work, for all causes or cause by cause.
        on_nontext: What to do with an input that holds content other than text.
        on_overlong: What to do with an input that has more tokens than the policy's ``max_tokens``.
        on_abstain: What to do with an input whose score lies in the policy's abstain band.
        history: ``screen`` judges the assistant's messages that a client sends as history and that no unit shows;
            ``trust`` does not: the app keeps the history itself.
        refused_turns: ``forgive`` lets a conversation go on behind a refusal that this guard gave; ``strict`` stops it
            as long as the refused turn is part of it.
        refusals: The app's own words for a refusal, beside those that NeMo Guardrails and its Colang files have.
        receipt_key_env: Name of the environment variable with a secret of 16 to 64 bytes that signs refusals, so that
            another process takes them for its own; None: only the process that refused a turn knows it.
        source: The engine that serves the base model; None: it runs in this process.
        base_model: Another place of the same base model (id or path); its fingerprint is checked.
        device: Torch device of the base model; several with commas between them; or ``auto``.
        allow_overrides: Names of the settings that a single request may change; none by default.
        override_bounds: The most open values that a request may ask for; the configured ones by default.
        client_options: What to do with a request that switches the rail off, or that steers the host by its own
            variables or events. ``allow``: what such a request sends reaches the main LLM without a verdict.
        system_messages: Who writes the system messages of a request: ``screen`` for the client, ``trust`` for the app.
        self_test: Inputs whose verdicts are known, for ``ctd-guardrail doctor`` and the readiness of the sidecar.
        rollout: Enforce for a share of the conversations; None: for all.
        monitor: Alarms on rate and scores, audits, and what survives a restart; None: nothing is watched.
        audit_log: A file with a line for each block, each failure, and a share of the rest; None: none is kept.
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
    expert_enabled: bool = True
    expert_attempts: Annotated[int, Field(ge=1, le=5)] = 1
    breaker: BreakerConfig | None = BreakerConfig()
    cap: _Caps = ()
    cap_store: CapStoreConfig | None = None
    principal: PrincipalConfig | None = None
    deadline_s: _Seconds = 30.0
    mode: Mode = Mode.ENFORCE
    on_failure: _OnFailure = OnFailure.BLOCK
    on_nontext: OnUnreadable = OnUnreadable.BLOCK
    on_overlong: Literal[OnUnreadable.BLOCK, OnUnreadable.EXPERT] = OnUnreadable.BLOCK
    on_abstain: Verdict = Verdict.BLOCK
    history: OnHistory = OnHistory.SCREEN
    refused_turns: RefusedTurns = RefusedTurns.FORGIVE
    refusals: tuple[_Text, ...] = ()
    receipt_key_env: VariableName | None = None
    source: VllmSourceConfig | None = None
    base_model: Annotated[str, Field(min_length=1)] | None = None
    device: Annotated[str, Field(min_length=1)] = "auto"
    allow_overrides: tuple[OverrideName, ...] = ()
    override_bounds: OverrideBoundsConfig = OverrideBoundsConfig()
    client_options: Literal["refuse", "allow"] = "refuse"
    system_messages: Literal["screen", "trust"] = "screen"
    self_test: SelfTestConfig = SelfTestConfig()
    rollout: RolloutConfig | None = None
    monitor: MonitorConfig | None = None
    audit_log: AuditLogConfig | None = None

    @model_validator(mode="after")
    def _named_experts_can_be_chosen(self) -> CtdConfig:
        if bool(self.experts) != ("expert" in self.allow_overrides):
            raise PydanticCustomError(
                "experts",
                "`experts` and `allow_overrides: [expert]` go together",
                {"hint": "Name the experts that a request may choose in `experts`, and `expert` in `allow_overrides`"},
            )
        return self

    @model_validator(mode="after")
    def _bounds_are_of_what_may_change(self) -> CtdConfig:
        # The guarantee and its horizon are bounded by alpha.
        allowed = {*self.allow_overrides, *(["alpha"] if "guarantee" in self.allow_overrides else [])}
        for name in self.override_bounds.model_dump(exclude_none=True):
            if name not in allowed:
                raise PydanticCustomError(
                    "override_bounds",
                    "`override_bounds` names `{name}`, and `allow_overrides` does not",
                    {"name": name, "hint": f"Name {name} in allow_overrides, or leave its bound out"},
                )
        return self

    @model_validator(mode="after")
    def _experts_fit_the_guard(self) -> CtdConfig:
        experts = (self.expert, *self.experts.values())
        longest = max((each.timeout_s for each in experts if not isinstance(each, LocalExpertConfig)), default=0.0)
        if longest >= self.deadline_s:
            raise PydanticCustomError(
                "deadline",
                "`deadline_s` must be longer than the expert's `timeout_s`, or the guard gives up before its expert",
                {"hint": f"Set deadline_s above {longest:g}, or a shorter expert.timeout_s"},
            )
        if self.expert_attempts > 1 and not all(isinstance(each, OpenAIExpertConfig) for each in experts):
            raise PydanticCustomError(
                "attempts",
                "`expert_attempts` is for experts of type openai: a rail's own client tries again by itself",
                {"hint": "Leave it out, and set the retries of the model that the rail uses"},
            )
        return self

    @model_validator(mode="after")
    def _caps_fit_their_sections(self) -> CtdConfig:
        if (self.principal is not None) != any(cap.per == "principal" for cap in self.cap):
            raise PydanticCustomError(
                "principal",
                "`principal` and a cap with `per: principal` go together",
                {"hint": "Say in `principal` where a request names its principal, and what each may spend in `cap`"},
            )
        if self.cap_store is not None and not self.cap:
            raise PydanticCustomError("cap_store", "`cap_store` has no cap to keep", {"hint": "Add `cap`"})
        return self

    @model_validator(mode="after")
    def _one_place_of_the_base_model(self) -> CtdConfig:
        if self.source is not None and self.base_model is not None:
            raise PydanticCustomError(
                "source",
                "`base_model` is for a base model in this process, and `source` names an engine",
                {"hint": "Keep one of them"},
            )
        if self.source is not None and self.source.timeout_s >= self.deadline_s:
            raise PydanticCustomError(
                "deadline",
                "`deadline_s` must be longer than the source's `timeout_s`, or the guard gives up before its engine",
                {"hint": f"Set deadline_s above {self.source.timeout_s:g}, or a shorter source.timeout_s"},
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
