"""CALIBRATE.yml: base model, data, expert, budget and probes of a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from calibrate.config.cluster import RayConfig
from calibrate.config.expert import AskedLocalExpert, AskedRailExpert, ExpertSection
from calibrate.config.recipe import Recipe
from calibrate.risk.losses import Metric
from ctd_guardrail.activations.spec import ActivationSpec, Layers
from ctd_guardrail.config.validation import load_yaml, validate
from ctd_guardrail.text.conversation import Context

__all__ = [
    "BaseModelConfig",
    "BudgetConfig",
    "CalibrateConfig",
    "DataConfig",
    "HiddenStatesConfig",
    "PriceConfig",
    "RiskConfig",
    "SplitConfig",
    "load_config",
    "load_expert",
]


Section = TypeVar("Section", bound=BaseModel)


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder: Path = (info.context or {}).get("folder", Path())
    return folder / path.expanduser()


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


def _as_tuple(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


_Share = Annotated[float, Field(gt=0.0, lt=1.0)]
_Path = Annotated[Path, AfterValidator(_beside_the_file)]
_Paths = Annotated[tuple[_Path, ...], BeforeValidator(_as_list), Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class BaseModelConfig(ActivationSpec):
    """The base model, the site of the activations, and the device.

    Attributes:
        device: ``auto`` (CUDA if there is one), ``cpu``, a torch device such as ``cuda:1``, or several with commas
            between them.
    """

    device: Annotated[str, Field(min_length=1)] = "auto"

    @property
    def spec(self) -> ActivationSpec:
        """Everything but the device, as the policy records it."""
        return ActivationSpec(**self.model_dump(exclude={"device"}))


class DataConfig(_Section):
    """Labelled conversations.

    Attributes:
        path: JSON lines, plain or gzip: one file or several.
        safety_path: Files that the safety probe is trained on instead of the training rows of ``path``.
        expert_column: Field that holds recorded expert scores, P(unsafe) in [0, 1].
        context: The part of a row that the probes and the expert read: its last user turn (``last_turn``), or the
            conversation up to and with it. The rail shows them the same part of every turn.
    """

    path: _Paths
    safety_path: _Paths | None = None
    expert_column: Annotated[str, Field(min_length=1)] | None = None
    context: Context = Context.CONVERSATION


class SplitConfig(_Section):
    """Shares of the rows. If none of the three is written, the ``split`` field of the rows decides, if they have it.

    Attributes:
        train: Share that both probes are trained on.
        calibration: Share that the budget is certified on.
        test: Share that the cascade is evaluated on.
        seed: Seed of the split and of all later random choices.
    """

    train: _Share = 0.6
    calibration: _Share = 0.2
    test: _Share = 0.2
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def are_written(self) -> bool:
        """Whether the file states shares."""
        return bool(self.model_fields_set - {"seed"})

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitConfig:
        total = self.train + self.calibration + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-6):
            raise PydanticCustomError(
                "shares",
                "the shares sum to {total}, not 1",
                {"total": f"{total:g}", "hint": "Write all three, for example .6, .2 and .2"},
            )
        return self


class RiskConfig(_Section):
    """A performance risk to certify beside the budget, for example ``{metric: fnr, max: 0.1}``.

    Attributes:
        metric: ``error``, ``fnr`` (missed harm), ``fpr`` (false alarms), ``abstained``, ``brier``, ``log_loss`` or
            ``auroc_error``.
        max: Upper bound of the risk.
    """

    metric: Metric
    max: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class BudgetConfig(_Section):
    """The budget that the policy certifies, and the performance risks that it certifies beside it.

    Attributes:
        alpha: Largest share of the inputs that the expert may see.
        delta: Admissible probability that calibration misses the budget or one of the risks.
        risk: One risk or several. Without any, the budget alone is certified, and the rail may change alpha and
            delta. With risks, the rail runs at the certified setting that has the lowest error rate.
        taus: Decision thresholds to choose from together with lambda, with risks.
        bands: Half-widths of the abstain band to choose from, with risks.
    """

    alpha: _Share
    delta: _Share = 0.05
    risk: Annotated[tuple[RiskConfig, ...], BeforeValidator(_as_tuple)] = ()
    taus: Annotated[tuple[_Share, ...], Field(min_length=1)] = (0.5,)
    bands: Annotated[tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...], Field(min_length=1)] = (0.0,)

    @model_validator(mode="after")
    def _chooses_for_a_risk(self) -> BudgetConfig:
        if not self.risk and (self.taus[1:] or self.bands != (0.0,)):
            raise PydanticCustomError(
                "risk",
                "`taus` and `bands` are chosen for a risk, and there is none",
                {"hint": "Add `risk: {metric: fnr, max: 0.1}`, or leave them out"},
            )
        return self


class HiddenStatesConfig(_Section):
    """Files of hidden states that vLLM has written, method ``extract_hidden_states``.

    Attributes:
        path: Their folder.
        layers: Layers in the files, ``eagle_aux_hidden_state_layer_ids``; None: those of ``base.layers``.
    """

    path: _Path
    layers: Layers | None = None


class PriceConfig(_Section):
    """Prices for the costs in the report.

    Attributes:
        expert_call: Price of one call of the expert.
        currency: Its unit, as the report writes it.
    """

    expert_call: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    currency: Annotated[str, Field(min_length=1, max_length=12)] = "USD"


class CalibrateConfig(_Section):
    """The content of CALIBRATE.yml. Relative paths start from the file's folder.

    Attributes:
        base: Base model and site of the activations.
        data: Labelled conversations.
        expert: The expert to ask for scores; None if ``data.expert_column`` holds them.
        splits: Shares of training, calibration and test rows.
        budget: alpha and delta.
        probes: Recipe of the training.
        prices: Prices for the report; None: it shows no costs.
        output: Folder of the policy.
        cache: Folder of activations and expert scores, from which a later run continues.
        hidden_states: Hidden states of the rows from vLLM; None: the base model reads the rows.
        run_on: Cluster that computes activations and asks the expert; None: this process.
    """

    base: BaseModelConfig
    data: DataConfig
    expert: ExpertSection | None = None
    splits: SplitConfig = SplitConfig()
    budget: BudgetConfig
    probes: Recipe = Recipe()
    prices: PriceConfig | None = None
    output: _Path
    cache: Annotated[_Path, Field(validate_default=True)] = Path(".ctd-cache")
    hidden_states: HiddenStatesConfig | None = None
    run_on: RayConfig | None = None

    @model_validator(mode="after")
    def _hidden_states_fit(self) -> CalibrateConfig:
        if self.hidden_states is None:
            return self
        layers = self.hidden_states.layers or self.base.layers
        if not set(self.base.layers) <= set(layers):
            problem, hint = "`hidden_states.layers` lack layers of `base.layers`", "Let vLLM write these layers as well"
        elif self.run_on is not None:
            problem, hint = "`hidden_states` leave a cluster nothing to compute", "Leave `run_on` out"
        else:
            return self
        raise PydanticCustomError("hidden_states", "{problem}", {"problem": problem, "hint": hint})

    @model_validator(mode="after")
    def _one_source_of_expert_scores(self) -> CalibrateConfig:
        if (self.expert is None) == (self.data.expert_column is None):
            state = "no source" if self.expert is None else "more than one source"
            raise PydanticCustomError(
                "expert",
                "there is {state} of expert scores",
                {
                    "state": state,
                    "hint": "Write either `data.expert_column` (recorded scores) or `expert` (ask for them)",
                },
            )
        return self

    @model_validator(mode="after")
    def _layers_to_choose_from(self) -> CalibrateConfig:
        for layers in self.probes.layers or ():
            if not set(layers) <= set(self.base.layers):
                raise PydanticCustomError(
                    "layers",
                    "probes.layers names {layers}, and base.layers has {available}",
                    {
                        "layers": str(list(layers)),
                        "available": str(list(self.base.layers)),
                        "hint": "List under base.layers every layer that may be chosen",
                    },
                )
        return self


def load_config(path: Path) -> CalibrateConfig:
    """Read CALIBRATE.yml.

    Raises:
        ConfigError: It is not YAML, or a key is unknown, missing, repeated or of a wrong value.
    """
    folder = path.absolute().parent
    config = validate(CalibrateConfig, load_yaml(path), file=path, context={"folder": folder})
    return config.model_copy(
        update={"base": _resolve(config.base, "model", folder), "expert": _resolve_expert(config.expert, folder)}
    )


class _ExpertFile(_Section):
    expert: ExpertSection


def load_expert(path: Path) -> ExpertSection:
    """Read a YAML file that holds nothing but an ``expert`` section.

    Raises:
        ConfigError: It is not YAML, or a key is unknown, missing, repeated or of a wrong value.
    """
    folder = path.absolute().parent
    section = validate(_ExpertFile, load_yaml(path), file=path, context={"folder": folder}).expert
    resolved = _resolve_expert(section, folder)
    return section if resolved is None else resolved


def _resolve_expert(expert: ExpertSection | None, folder: Path) -> ExpertSection | None:
    match expert:
        case AskedLocalExpert():
            return _resolve(expert, "model", folder)
        case AskedRailExpert(config=Path()):
            return _resolve(expert, "config", folder)
        case _:
            return expert


def _resolve(section: Section, key: str, folder: Path) -> Section:
    """Make the path of an existing folder absolute. Any other value is a Hugging Face id."""
    path = folder / str(getattr(section, key))
    return section.model_copy(update={key: type(getattr(section, key))(path)}) if path.is_dir() else section
