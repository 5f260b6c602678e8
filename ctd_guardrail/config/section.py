"""The section ``custom_data.ctd`` of a NeMo Guardrails configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ctd_guardrail.config.experts import (
    ExpertAddress,
    ExpertConfig,
    LocalExpertConfig,
    OpenAIExpertConfig,
    PythonExpertConfig,
)
from ctd_guardrail.config.limits import CapConfig, PaceConfig, PrincipalConfig
from ctd_guardrail.config.observability import AuditLogConfig, MonitorConfig, RolloutConfig
from ctd_guardrail.config.on_failure import OnFailureByCause
from ctd_guardrail.config.override_bounds import OverrideBoundsConfig
from ctd_guardrail.config.source import SourceConfig, VllmSourceConfig
from ctd_guardrail.config.store import StoreConfig
from ctd_guardrail.config.types import Alpha, Count, Price, Seconds, Section, Share, Text, VariableName
from ctd_guardrail.config.validation import validate
from ctd_guardrail.decision import Mode, OnFailure, OnHistory, OnUnreadable, RefusedTurns, Verdict
from ctd_guardrail.policy.guarantees import Guarantee
from ctd_guardrail.policy.selection import Criterion
from ctd_guardrail.policy.turns import BudgetUnit

__all__ = ["SECTION", "CostConfig", "CtdConfig", "OverrideName", "SelfTestConfig", "parse_section"]

SECTION: Final = "custom_data.ctd"

OverrideName = Literal["alpha", "delta", "guarantee", "horizon", "mode", "expert", "on_failure", "max_expert_calls"]
"""A setting that a single request may change if ``allow_overrides`` names it."""


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, Mapping | CapConfig) else value


def _refuse_a_section(value: object) -> object:
    if isinstance(value, Mapping):
        raise PydanticCustomError("breaker", "is a number of failures", {"hint": "Write `breaker: 5`, or null"})
    return value


def _form_of(value: object) -> str:
    return "by_cause" if isinstance(value, Mapping | OnFailureByCause) else "for_all"


_OnFailure = Annotated[
    Annotated[OnFailure, Tag("for_all")] | Annotated[OnFailureByCause, Tag("by_cause")], Discriminator(_form_of)
]
_Caps = Annotated[tuple[CapConfig, ...], BeforeValidator(_as_tuple)]


class CostConfig(Section):
    """Prices of the outcomes, all in the same unit. Only their ratios matter."""

    missed: Price = 1.0
    """Price of an unsafe input that is allowed."""
    false_alarm: Price = 1.0
    """Price of a safe input that is blocked."""
    call: Price = 0.0
    """Price of a call of the expert."""


class SelfTestConfig(Section):
    """Inputs whose verdicts are known. If one of them gets another verdict, the guard is not ready."""

    unsafe: tuple[Text, ...] = ()
    """Texts that must be blocked."""
    safe: tuple[Text, ...] = ()
    """Texts that must be allowed."""


class CtdConfig(Section):
    """The settings of the rail: the section `custom_data.ctd` of a NeMo Guardrails configuration."""

    policy: Path
    """Folder of the policy that ``ctd-calibrate run`` wrote, relative to the configuration's folder."""
    # Before alpha, whose range depends on it.
    unit: BudgetUnit | None = None
    """What alpha bounds: calls per ``turn``, a share, or calls per ``conversation``, a mean number. By default the
    policy's."""
    alpha: Alpha | None = None
    """Budget: the largest share of the turns that goes to the expert, or the mean number of calls per conversation. By
    default the policy's. Another alpha needs no calibration. Under ``guarantee: exact``, one that was chosen after its
    results were seen is not covered; ``simultaneous`` covers it."""
    delta: Share | None = None
    """Probability that the calibration misses the budget. By default the policy's. Fix it before you see results."""
    guarantee: Guarantee = Guarantee.EXACT
    """Meaning of alpha: ``exact``, ``simultaneous``, ``expected`` or ``next``, see docs/guarantees.md."""
    horizon: Count | None = None
    """Number of inputs that ``guarantee: next`` is about."""
    criterion: Criterion = Criterion.BUDGET
    """Choice among the certified thresholds: ``budget`` uses the whole budget; ``auroc``, ``accuracy``, ``brier`` and
    ``cost`` take the threshold with the best value on the labelled calibration rows. The best one may delegate less,
    and almost nothing if no gain is clear."""
    costs: CostConfig = CostConfig()
    """Prices for ``criterion: cost``."""
    tie_key_env: VariableName | None = None
    """Name of the environment variable with a secret of 16 to 64 bytes. With it, a keyed hash of the text decides about
    inputs that tie with the threshold; without it, they stay with the probe. Set it if d takes few distinct values."""
    expert: ExpertConfig
    """The expert that judges delegated inputs, see docs/experts.md."""
    experts: dict[Text, ExpertAddress] = Field(default_factory=dict)
    """Further addresses of the same expert (type ``openai``), by name. A request may choose one of them."""
    expert_enabled: bool = True
    """Kill switch: with ``false``, no expert is called, and delegated inputs fail with ``expert_disabled``."""
    expert_attempts: Annotated[int, Field(ge=1, le=5)] = 1
    """Calls for one input if the fault is transient (types ``openai`` and ``python``). Every attempt counts under the
    caps."""
    max_expert_calls: Count | None = 2
    """Most calls of the expert for one request; ``null``: no limit. A request shows earlier turns too, and those that
    are not remembered are judged again. Turns beyond the limit fail with ``cap_exhausted``: a forged history cannot buy
    a call for each of its turns. Audits have as many calls of their own."""
    breaker: Annotated[Count | None, BeforeValidator(_refuse_a_section)] = 5
    """Timeouts and transient faults in a row after which the expert is not called for 10 seconds; inputs then fail with
    ``breaker_open``. ``null`` switches the breaker off."""
    cap: _Caps = ()
    """Caps on the expert's calls and tokens: one or a list. Inputs beyond a cap fail with ``cap_exhausted``."""
    store: StoreConfig | None = None
    """Server on which several processes share their caps and their memory of judgements. By default each process has
    its own."""
    pace: PaceConfig | None = None
    """Threshold that rises while traffic asks for more calls than alpha pays for, see docs/pacing.md. By default the
    certified threshold runs unchanged."""
    principal: PrincipalConfig | None = None
    """Place where a request names its principal, for caps and rollouts by principal."""
    deadline_s: Seconds = 30.0
    """Seconds for the verdict on a request: queue, forward pass and expert. Later inputs fail with ``deadline``. Must
    be longer than the expert's ``timeout_s``."""
    mode: Mode = Mode.ENFORCE
    """``enforce`` blocks; ``shadow`` screens, counts and asks the expert, and allows every input. Use ``shadow`` to
    watch a new rail."""
    on_failure: _OnFailure = OnFailure.BLOCK
    """Verdict if the guard cannot do its work: ``block``, ``probe`` (the safety probe's own verdict) or ``allow``; one
    word for all causes, or a mapping of causes to words. See docs/failures.md."""
    on_nontext: OnUnreadable = OnUnreadable.BLOCK
    """Treatment of a turn with content other than text: ``block``, ``allow`` (only its text is screened) or
    ``expert`` (a call that alpha pays for)."""
    on_overlong: Literal[OnUnreadable.BLOCK, OnUnreadable.EXPERT] = OnUnreadable.BLOCK
    """Treatment of an input with more tokens than the policy's ``max_tokens``: ``block`` or ``expert`` (a call that
    alpha pays for)."""
    on_abstain: Verdict = Verdict.BLOCK
    """Verdict on a score in the abstain band of a policy that has one."""
    history: OnHistory = OnHistory.SCREEN
    """Treatment of assistant messages that a client sends as history: ``screen`` judges them; use ``trust`` if the app
    keeps the history itself."""
    refused_turns: RefusedTurns = RefusedTurns.FORGIVE
    """Treatment of a conversation with a refused turn: ``forgive`` lets it go on after the refusal; ``strict`` blocks
    it as long as the turn is part of it."""
    refusals: tuple[Text, ...] = ()
    """Your app's own words for a refusal, beside those of NeMo Guardrails and your Colang files."""
    receipt_key_env: VariableName | None = None
    """Name of the environment variable with a secret of 16 to 64 bytes that signs refusals. With it, other processes
    recognise a refusal of this one. Set it if you run replicas."""
    source: SourceConfig | None = None
    """Place of the activations: an engine that serves the base model (docs/serving.md), or Python code of your own
    (docs/write-your-own.md). By default a Hugging Face model in this process."""
    base_model: Text | None = None
    """Another place of the policy's base model: a Hugging Face id or a folder. Its fingerprint is checked."""
    device: Text = "auto"
    """Torch device of the base model: ``auto``, ``cpu``, ``cuda:1``, or several with commas between them (extra
    ``large``)."""
    allow_overrides: tuple[OverrideName, ...] = ()
    """Names of the settings that a single request may change. By default none."""
    override_bounds: OverrideBoundsConfig = OverrideBoundsConfig()
    """Most open values that a request may ask for. By default the configured ones."""
    client_options: Literal["refuse", "allow"] = "refuse"
    """Treatment of a request that switches the rail off, or sets variables or events of the host. With ``allow``, such
    a request reaches the main LLM without a verdict."""
    system_messages: Literal["screen", "trust"] = "screen"
    """Author of a request's system messages: ``screen`` (the client; they are judged) or ``trust`` (the app)."""
    self_test: SelfTestConfig = SelfTestConfig()
    """Inputs with known verdicts, for ``ctd-guardrail doctor`` and the readiness of the sidecar."""
    rollout: RolloutConfig | None = None
    """Enforce for a share of the conversations. By default for all."""
    monitor: MonitorConfig | None = None
    """Alarms on rate and scores, audits, and kept state, see docs/monitoring.md. By default nothing is watched."""
    audit_log: AuditLogConfig | None = None
    """File with a line for each block, each failure, and a share of the rest. By default there is none."""

    @property
    def every_expert(self) -> dict[str | None, ExpertConfig]:
        """The expert at each of its addresses, by name; the name of ``expert`` itself is None."""
        expert = self.expert
        if not isinstance(expert, OpenAIExpertConfig):
            return {None: expert}
        return {None: expert, **{name: address.of(expert) for name, address in self.experts.items()}}

    @field_validator("alpha")
    @classmethod
    def _is_a_share(cls, alpha: float | None, info: ValidationInfo) -> float | None:
        if alpha is not None and alpha >= 1.0 and info.data.get("unit") is not BudgetUnit.CONVERSATION:
            raise PydanticCustomError(
                "alpha",
                "a share of the turns must be less than 1",
                {"hint": "Use a share such as 0.1, or `unit: conversation`"},
            )
        return alpha

    @model_validator(mode="after")
    def _named_experts_can_be_chosen(self) -> CtdConfig:
        if bool(self.experts) != ("expert" in self.allow_overrides):
            raise PydanticCustomError(
                "experts",
                "`experts` and `allow_overrides: [expert]` go together",
                {"hint": "Name the experts that a request may choose in `experts`, and `expert` in `allow_overrides`"},
            )
        if self.experts and not isinstance(self.expert, OpenAIExpertConfig):
            raise PydanticCustomError(
                "experts", "`experts` are addresses of an expert of type openai", {"hint": "Leave `experts` out"}
            )
        return self

    @model_validator(mode="after")
    def _bounds_are_of_what_may_change(self) -> CtdConfig:
        # The bound of alpha also bounds the guarantee and its horizon.
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
        experts = self.every_expert.values()
        longest = max((each.timeout_s for each in experts if not isinstance(each, LocalExpertConfig)), default=0.0)
        if longest >= self.deadline_s:
            raise PydanticCustomError(
                "deadline",
                "`deadline_s` must be longer than the expert's `timeout_s`, or the guard gives up before its expert",
                {"hint": f"Set deadline_s above {longest:g}, or a shorter expert.timeout_s"},
            )
        if self.expert_attempts > 1 and not isinstance(self.expert, OpenAIExpertConfig | PythonExpertConfig):
            raise PydanticCustomError(
                "attempts",
                "`expert_attempts` is for experts of type openai and python: a rail's own client tries again by itself",
                {"hint": "Leave it out, and set the retries of the model that the rail uses"},
            )
        if self.max_expert_calls is not None and self.expert_attempts > self.max_expert_calls:
            raise PydanticCustomError(
                "attempts",
                "`expert_attempts` is more than `max_expert_calls`, the most calls for one request",
                {"hint": f"Set max_expert_calls to {self.expert_attempts} or more"},
            )
        return self

    @model_validator(mode="after")
    def _caps_and_principals_fit(self) -> CtdConfig:
        is_drawn = self.rollout is not None and self.rollout.by == "principal"
        if (self.principal is not None) != (is_drawn or any(cap.per == "principal" for cap in self.cap)):
            raise PydanticCustomError(
                "principal",
                "`principal` goes together with a cap `per: principal` or a rollout `by: principal`",
                {"hint": "Say in `principal` where a request names its principal, and what each may spend in `cap`"},
            )
        if self.store is not None and not self.cap and self.store.key_env is None:
            raise PydanticCustomError(
                "store", "`store` has nothing to keep", {"hint": "Add `cap`, or `key_env` in `store` for the memory"}
            )
        return self

    @model_validator(mode="after")
    def _one_place_of_the_base_model(self) -> CtdConfig:
        if self.source is not None and self.base_model is not None:
            raise PydanticCustomError(
                "source",
                "`base_model` is for a base model in this process, and `source` names an engine",
                {"hint": "Keep one of them"},
            )
        if isinstance(self.source, VllmSourceConfig) and self.source.timeout_s >= self.deadline_s:
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
