"""CALIBRATE.yml: base model, data, expert, budget and probes of a calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from calibrate.config.cluster import RayConfig
from calibrate.config.expert import AskedLocalExpert, AskedPythonExpert, AskedRailExpert, ExpertSection
from calibrate.config.recipe import Recipe
from calibrate.risk.losses import Metric
from ctd_guardrail.activations.spec import ActivationSpec, Layers
from ctd_guardrail.config.source import PythonSourceConfig
from ctd_guardrail.config.types import Section, Share
from ctd_guardrail.config.validation import load_yaml, validate
from ctd_guardrail.policy.turns import BudgetUnit
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
    "load_source",
]


_Model = TypeVar("_Model", bound=BaseModel)


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    folder: Path = (info.context or {}).get("folder", Path())
    return folder / path.expanduser()


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


def _as_tuple(value: Any) -> Any:
    return [value] if isinstance(value, Mapping) else value


_Path = Annotated[Path, AfterValidator(_beside_the_file)]
_Paths = Annotated[tuple[_Path, ...], BeforeValidator(_as_list), Field(min_length=1)]


class BaseModelConfig(ActivationSpec):
    """The base model, the site of the activations, and the device."""

    device: Annotated[str, Field(min_length=1)] = "auto"
    """``auto`` (CUDA if there is one), ``cpu``, a torch device such as ``cuda:1``, or several with commas between
    them."""

    @property
    def spec(self) -> ActivationSpec:
        """Everything but the device, as the policy records it."""
        return ActivationSpec(**self.model_dump(exclude={"device"}))


class DataConfig(Section):
    """Labelled conversations."""

    path: _Paths
    """JSON lines, plain or gzip: one file or several."""
    safety_path: _Paths | None = None
    """Files that the safety probe is trained on instead of the training rows of ``path``."""
    expert_column: Annotated[str, Field(min_length=1)] | None = None
    """Field that holds recorded expert scores, P(unsafe) in [0, 1]."""
    context: Context = Context.CONVERSATION
    """The part of a row that the probes and the expert read: its last user turn (``last_turn``), or the conversation up
    to and with it. The rail shows them the same part of every turn."""


class SplitConfig(Section):
    """Shares of the rows. If none of the three is written, the ``split`` field of the rows decides, if they have it."""

    train: Share = 0.6
    """Share that both probes are trained on."""
    calibration: Share = 0.2
    """Share that the budget is certified on."""
    test: Share = 0.2
    """Share that the cascade is evaluated on."""
    label_share: Share | None = None
    """Probability of a label, if a coin of your own decided which calibration rows got one, whatever is in them. The
    others have ``label: null``, and ``budget.risk`` uses the expert's score of them, see docs/risks.md."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the split and of all later random choices."""

    @property
    def are_written(self) -> bool:
        """Whether the file states shares."""
        return bool(self.model_fields_set - {"seed", "label_share"})

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


class RiskConfig(Section):
    """A performance risk to certify beside the budget, for example ``{metric: fnr, max: 0.1}``."""

    metric: Metric
    """``error``, ``fnr`` (missed harm), ``fpr`` (false alarms), ``abstained``, ``brier``, ``log_loss``,
    ``auroc_error``, ``probe_error`` or ``probe_false_omission``, see docs/risks.md."""
    max: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    """Upper bound of the risk."""


class BudgetConfig(Section):
    """The budget that the policy certifies, and the performance risks that it certifies beside it."""

    # Before alpha, whose range depends on it.
    unit: BudgetUnit = BudgetUnit.TURN
    """What alpha bounds: calls per judged turn (``turn``), or calls per conversation (``conversation``)."""
    alpha: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    """The budget, as ``unit`` says: largest share of the turns that the expert may see, below 1; or largest mean number
    of its calls in a conversation, which may exceed 1."""
    max_turns: Annotated[int, Field(ge=1)] | None = None
    """Largest number of turns of a conversation in the deployment. Longer conversations are not covered by the
    certificate. None: that of the longest calibration conversation."""
    delta: Share = 0.05
    """Admissible probability that calibration misses the budget or one of the risks."""
    risk: Annotated[tuple[RiskConfig, ...], BeforeValidator(_as_tuple)] = ()
    """One risk or several. Without any, the budget alone is certified, and the rail may change alpha and delta. With
    risks, the rail runs at the certified setting that has the lowest error rate."""
    taus: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.5,)
    """Decision thresholds to choose from together with lambda, with risks."""
    bands: Annotated[tuple[Annotated[float, Field(ge=0.0, lt=1.0)], ...], Field(min_length=1)] = (0.0,)
    """Half-widths of the abstain band to choose from, with risks."""

    @field_validator("alpha")
    @classmethod
    def _is_a_share(cls, alpha: float, info: ValidationInfo) -> float:
        if info.data.get("unit") is BudgetUnit.TURN and alpha >= 1.0:
            raise PydanticCustomError(
                "alpha",
                "a share of the turns must be less than 1",
                {"hint": "Use a share such as .1, or `unit: conversation`"},
            )
        return alpha

    @model_validator(mode="after")
    def _chooses_for_a_risk(self) -> BudgetConfig:
        if not self.risk and (self.taus[1:] or self.bands != (0.0,)):
            raise PydanticCustomError(
                "risk",
                "`taus` and `bands` need a risk, but `risk` is missing",
                {"hint": "Add `risk: {metric: fnr, max: 0.1}`, or leave them out"},
            )
        return self


class HiddenStatesConfig(Section):
    """Files of hidden states that vLLM has written, method ``extract_hidden_states``."""

    path: _Path
    """Folder of the files, see docs/serving.md."""
    layers: Layers | None = None
    """Layers in the files, ``eagle_aux_hidden_state_layer_ids``; None: those of ``base.layers``."""


class PriceConfig(Section):
    """Prices for the costs in the report."""

    expert_call: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    """Price of one call of the expert."""
    currency: Annotated[str, Field(min_length=1, max_length=12)] = "USD"
    """Currency of the price, as the report writes it."""


class CalibrateConfig(Section):
    """The content of CALIBRATE.yml. Relative paths start from the file's folder."""

    base: BaseModelConfig
    """Base model and site of the activations."""
    data: DataConfig
    """Files of labelled conversations, and the text of a row that is read."""
    expert: ExpertSection | None = None
    """Expert that is asked for scores, see docs/experts.md. Leave it out if ``data.expert_column`` has them. Here it
    also has ``max_refused_rows``, the rows that it may refuse: a number of rows, or a share below 1 (0.01)."""
    splits: SplitConfig = SplitConfig()
    """Shares of training, calibration and test rows."""
    budget: BudgetConfig
    """Budget and risks that the policy certifies."""
    probes: Recipe = Recipe()
    """Recipe of the training."""
    prices: PriceConfig | None = None
    """Prices for the report; None: it shows no costs."""
    output: _Path
    """Folder of the policy."""
    cache: Annotated[_Path, Field(validate_default=True)] = Path(".ctd-cache")
    """Folder of activations and expert scores, from which a later run continues."""
    hidden_states: HiddenStatesConfig | None = None
    """Hidden states of the rows from vLLM; None: the base model reads the rows."""
    source: PythonSourceConfig | None = None
    """Python code of your own that computes activations, see docs/write-your-own.md; None: ``base.model`` is a Hugging
    Face model."""
    run_on: RayConfig | None = None
    """Cluster that computes activations and asks the expert; None: this process."""

    @model_validator(mode="after")
    def _hidden_states_fit(self) -> CalibrateConfig:
        if self.hidden_states is None:
            return self
        layers = self.hidden_states.layers or self.base.layers
        if not set(self.base.layers) <= set(layers):
            problem, hint = "`hidden_states.layers` lack layers of `base.layers`", "Let vLLM write these layers as well"
        elif self.source is not None:
            problem, hint = "`hidden_states` and `source` are two places of activations", "Keep one of them"
        elif self.run_on is not None:
            problem, hint = "`hidden_states` leave a cluster nothing to compute", "Leave `run_on` out"
        else:
            return self
        raise PydanticCustomError("hidden_states", "{problem}", {"problem": problem, "hint": hint})

    @model_validator(mode="after")
    def _few_labels_are_for_risks(self) -> CalibrateConfig:
        if self.splits.label_share is not None and not self.budget.risk:
            raise PydanticCustomError(
                "label_share",
                "`splits.label_share` is for `budget.risk`: the budget alone needs no labels",
                {"hint": "Add `budget.risk`, or leave label_share out"},
            )
        return self

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
                    "probes.layers names {layers}, but base.layers has {available}",
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
        update={
            "base": _resolve(config.base, "model", folder),
            "expert": _resolve_expert(config.expert, folder),
            "source": None if config.source is None else config.source.in_folder(folder),
        }
    )


class _ExpertFile(Section):
    expert: ExpertSection


class _SourceFile(Section):
    source: PythonSourceConfig


def load_expert(path: Path) -> ExpertSection:
    """Read a YAML file that holds nothing but an ``expert`` section.

    Raises:
        ConfigError: It is not YAML, or a key is unknown, missing, repeated or of a wrong value.
    """
    folder = path.absolute().parent
    section = validate(_ExpertFile, load_yaml(path), file=path, context={"folder": folder}).expert
    resolved = _resolve_expert(section, folder)
    return section if resolved is None else resolved


def load_source(path: Path) -> PythonSourceConfig:
    """Read a YAML file that holds nothing but a ``source`` section.

    Raises:
        ConfigError: It is not YAML, or a key is unknown, missing, repeated or of a wrong value.
    """
    return validate(_SourceFile, load_yaml(path), file=path).source.in_folder(path.absolute().parent)


def _resolve_expert(expert: ExpertSection | None, folder: Path) -> ExpertSection | None:
    match expert:
        case AskedLocalExpert():
            return _resolve(expert, "model", folder)
        case AskedRailExpert(config=Path()):
            return _resolve(expert, "config", folder)
        case AskedPythonExpert():
            return expert.in_folder(folder)
        case _:
            return expert


def _resolve(section: _Model, key: str, folder: Path) -> _Model:
    """Make the path of an existing folder absolute. Any other value is a Hugging Face id."""
    path = folder / str(getattr(section, key))
    return section.model_copy(update={key: type(getattr(section, key))(path)}) if path.is_dir() else section
