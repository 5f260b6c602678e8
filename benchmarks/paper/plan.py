"""Plan of the benchmark: base model, experts, recipes of the probes and settings, from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from calibrate.config.file import BaseModelConfig
from calibrate.config.recipe import Recipe
from ctd_guardrail._typing import IntArray
from ctd_guardrail.activations.spec import Layers
from ctd_guardrail.config.experts import ExpertConfig
from ctd_guardrail.config.validation import load_yaml, validate

__all__ = ["Plan", "PlanRecipe", "RowCounts", "SafetySource", "Setting", "load_plan"]

_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(gt=0.0, lt=1.0)]
_Name = Annotated[str, Field(min_length=1)]
_Files = Annotated[
    tuple[Path, ...],
    BeforeValidator(lambda value: [value] if isinstance(value, str | Path) else value),
    Field(min_length=1),
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class PlanRecipe(Recipe):
    """A recipe of CALIBRATE.yml, and the layers that it reads.

    Attributes:
        reads: Layers of ``base.layers`` that the probes may read; None: all.
    """

    reads: Layers | None = None


class RowCounts(_Section):
    """Rows of each part, over all files of a setting together.

    Attributes:
        train: Rows that train the delegation value, and a refitted safety probe.
        calibration: Rows that certify.
        test: Most rows of the evaluation.
    """

    train: _Count = 1500
    calibration: _Count = 1000
    test: _Count = 3000


class SafetySource(_Section):
    """Source of the safety probe: exactly one of three.

    Attributes:
        data: Separate files.
        group: Group of the setting's files whose rows train only the safety probe.
        rows: Number of separate rows of the setting's files, drawn for each seed.
    """

    data: _Files | None = None
    group: _Name | None = None
    rows: _Count | None = None

    @model_validator(mode="after")
    def _one(self) -> SafetySource:
        if len(self.model_fields_set) != 1:
            problem, hint = "a safety probe has one source", "Write one of `data`, `group` and `rows`"
            raise PydanticCustomError("source", "{problem}", {"problem": problem, "hint": hint})
        return self


class Setting(_Section):
    """One setting of the benchmark.

    Attributes:
        name: Name in the tables.
        refit: Name of the setting with the safety probe refitted on the training rows. None if the tables show only
            the refitted probe and its CTD, beside the other methods.
        data: Labelled files. Several files make one mixture, in equal shares.
        safety: Source of the safety probe.
        rows: Sizes of the parts.
        token_recipes: Additional recipes of probes that read every token.
    """

    name: _Name
    refit: _Name | None = None
    data: _Files
    safety: SafetySource
    rows: RowCounts = RowCounts()
    token_recipes: tuple[_Name, ...] = ()


class Plan(_Section):
    """The content of the file.

    Attributes:
        base: Base model and layers.
        experts: By name, a column of recorded scores or a section ``expert`` as in CALIBRATE.yml.
        recipes: By name, a section ``probes`` as in CALIBRATE.yml, and the layers that it reads. The main tables show
            the first. Recipes that read
            every token take minutes a seed, and run only in the settings that name them.
        seeds: Number of seeds, for recipes that run over the first few seeds only.
        settings: Settings to measure.
        delta: Error probability of each certificate.
    """

    base: BaseModelConfig
    experts: Annotated[dict[_Name, _Name | ExpertConfig], Field(min_length=1)]
    recipes: Annotated[dict[_Name, PlanRecipe], Field(min_length=1)]
    seeds: dict[_Name, _Count] = {}
    settings: Annotated[tuple[Setting, ...], Field(min_length=1)]
    delta: _Share = 0.1

    @property
    def mean_recipes(self) -> list[str]:
        """Names of the recipes that every setting runs."""
        return [name for name, recipe in self.recipes.items() if not recipe.reads_tokens]

    @property
    def token_recipes(self) -> list[str]:
        """Names of the recipes whose probes read every token."""
        return [name for name in self.recipes if name not in self.mean_recipes]

    @model_validator(mode="after")
    def _knows_its_recipes(self) -> Plan:
        if next(iter(self.recipes)) not in self.mean_recipes:
            problem, hint = "the first recipe reads every token", "Put one of `kinds: [mean]` first"
            raise PydanticCustomError("recipes", "{problem}", {"problem": problem, "hint": hint})
        for name in self.seeds:
            if name not in self.recipes:
                problem, hint = f"seeds names {name}, which is no recipe", "See `recipes`"
                raise PydanticCustomError("recipes", "{problem}", {"problem": problem, "hint": hint})
        for setting in self.settings:
            for name in setting.token_recipes:
                if name not in self.token_recipes:
                    problem = f"{setting.name} names {name}, which is no recipe that reads tokens"
                    raise PydanticCustomError("recipes", "{problem}", {"problem": problem, "hint": "See `recipes`"})
        return self

    @property
    def ridge_layers(self) -> IntArray:
        """Places in ``base.layers`` that the paper's ridge reads: those of the first recipe, if it names layers."""
        named = next(iter(self.recipes.values())).layers
        return np.flatnonzero(np.isin(self.base.layers, named[0] if named else self.base.layers))


def load_plan(path: Path) -> Plan:
    """Read the file.

    Raises:
        ConfigError: The file is not YAML, or a key is unknown, missing, repeated or has a wrong value.
    """
    return validate(Plan, load_yaml(path), file=path)
