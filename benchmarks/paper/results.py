"""Results of all seeds of a setting, and their file, from which tables and pictures are made."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmarks.paper.cube import Cube
from benchmarks.paper.protocols import OWN_METHODS, PAPER_ALPHAS, PAPER_METHODS, TARGETS
from benchmarks.paper.trial import SPLITS, Outcome
from calibrate.evaluate.grid import ALPHAS
from ctd_guardrail._typing import FloatArray
from ctd_guardrail.runtime.files import write_whole

__all__ = ["Index", "Result", "read_results", "write_results"]


@dataclass(frozen=True, slots=True)
class Result:
    """One setting with one expert and one recipe.

    Attributes:
        setting: Name of the setting. Empty for a refit that the tables show beside the setting that it refits.
        refit_of: Name of the setting whose probe is refitted; None if the probe has another source.
        expert: Name of the expert.
        recipe: Name of the recipe.
        own: Figures of this package's protocol.
        paper: Figures of the paper's protocol; None if it was not run.
        spearman: Rank correlation with the true v on test rows, of d and of the paper's ridge, shape [seeds, 2].
        splits: Random calibration splits of all seeds: the share in which the rate exceeded alpha, the expected
            share, and the mean rate, shape [3, alphas].
        splits_count: Number of splits.
        targets: Figures of the continuous and of the binary target; None if the binary target was not trained.
    """

    setting: str
    refit_of: str | None
    expert: str
    recipe: str
    own: Cube
    paper: Cube | None
    spearman: FloatArray
    splits: FloatArray
    splits_count: int
    targets: Cube | None = None

    @property
    def family(self) -> str:
        """First word of the setting's name. Settings of one family differ only in their data."""
        return self.setting.split()[0]

    @property
    def name(self) -> str:
        """Setting and expert."""
        return f"{self.setting}, {self.expert}"

    def first(self, seeds: int) -> Result:
        """Return the same with its first seeds only."""
        own = replace(self.own, values=self.own.values[:seeds])
        return replace(self, own=own, paper=None, spearman=self.spearman[:seeds])

    @classmethod
    def of_seeds(
        cls, setting: str, expert: str, recipe: str, outcomes: Sequence[Outcome], *, refit_of: str | None = None
    ) -> Self:
        """Join the outcomes of all seeds."""
        paper = [outcome.paper for outcome in outcomes if outcome.paper is not None]
        targets = [outcome.targets for outcome in outcomes if outcome.targets is not None]
        return cls(
            setting=setting,
            refit_of=refit_of,
            expert=expert,
            recipe=recipe,
            own=Cube.stack(OWN_METHODS, ALPHAS, [outcome.own for outcome in outcomes]),
            paper=Cube.stack(PAPER_METHODS, PAPER_ALPHAS, paper) if paper else None,
            spearman=np.array([outcome.spearman for outcome in outcomes]),
            splits=np.mean([outcome.splits for outcome in outcomes], axis=0),
            splits_count=len(outcomes) * SPLITS,
            targets=Cube.stack(TARGETS, ALPHAS, targets) if targets else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values for JSON."""
        return {
            "setting": self.setting,
            "refit_of": self.refit_of,
            "expert": self.expert,
            "recipe": self.recipe,
            "own": self.own.to_dict(),
            "paper": self.paper.to_dict() if self.paper else None,
            "spearman": self.spearman.tolist(),
            "splits": self.splits.tolist(),
            "splits_count": self.splits_count,
            "targets": self.targets.to_dict() if self.targets else None,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Return what :meth:`to_dict` wrote."""
        arrays = {name: np.array(content[name]) for name in ("spearman", "splits")}
        found = {name: content.get(name) for name in ("own", "paper", "targets")}
        cubes = {name: Cube.from_dict(cube) if cube else None for name, cube in found.items()}
        return cls(**(content | arrays | cubes))


@dataclass(frozen=True, slots=True)
class Index:
    """Looks results up by setting, expert and recipe.

    Attributes:
        results: Of every setting, expert and recipe.
        recipes: Names of the recipes that every setting runs. The main tables show the first.
        token_recipes: Names of the recipes that only some settings run.
    """

    results: Sequence[Result]
    recipes: Sequence[str]
    token_recipes: Sequence[str] = ()

    @property
    def main(self) -> list[Result]:
        """Results of the first recipe that have a name."""
        return [result for result in self.results if result.recipe == self.recipes[0] and result.setting]

    @property
    def comparisons(self) -> list[list[str]]:
        """Groups of recipes to compare: those of every setting, and the first with those of some settings."""
        groups = [list(self.recipes), [self.recipes[0], *self.token_recipes]]
        return [group for group in groups if len(group) > 1]

    def variants(self, result: Result) -> list[Result]:
        """Return the results of the same setting and expert with every recipe."""
        same = [other for other in self.results if (other.setting, other.expert) == (result.setting, result.expert)]
        order = [*self.recipes, *self.token_recipes]
        return sorted(same, key=lambda other: order.index(other.recipe))

    def refitted(self, result: Result) -> Result:
        """Return the result with the refitted probe: the given one if its probe is refitted."""
        if result.refit_of is not None:
            return result
        key = (result.setting, result.expert, result.recipe)
        return next(other for other in self.results if (other.refit_of, other.expert, other.recipe) == key)


def write_results(file: Path, results: Sequence[Result]) -> None:
    """Write results to a gzip file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, gzip.compress(json.dumps([result.to_dict() for result in results]).encode()))


def read_results(file: Path) -> list[Result]:
    """Read what :func:`write_results` wrote."""
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return [Result.from_dict(content) for content in json.load(stream)]
