"""Tables over several settings, from the JSON files that ``benchmarks/cascade.py --json`` has written."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tables import Table, mean_and_error

from calibrate.evaluate import ALPHAS

_SHOWN_ALPHA: Final = 0.2
_SHOWN_METHODS: Final = ("probe", "random", "uncertainty", "ctd", "oracle", "expert")
_ROUTERS: Final = ("random", "uncertainty", "ctd")
_FIGURES: Final = ("auroc", "accuracy", "brier")


@dataclass(frozen=True, slots=True)
class Setting:
    """One file.

    Attributes:
        name: Its name, without the ending.
        result: Its content.
    """

    name: str
    result: dict[str, Any]

    def figures(self, method: str, alpha: float, figure: str) -> NDArray[np.float64]:
        """Return one figure by seed, shape [seeds]."""
        rows = [row for row in self.result["rows"] if row["method"] == method and row["alpha"] == alpha]
        return np.array([row[figure] for row in sorted(rows, key=lambda row: row["seed"])])

    def margins(self) -> list[str]:
        """Return CTD minus uncertainty in each figure, averaged over alpha."""
        by_alpha = {
            figure: [self.figures("ctd", a, figure) - self.figures("uncertainty", a, figure) for a in ALPHAS]
            for figure in _FIGURES
        }
        return [mean_and_error(np.mean(by_alpha[figure], axis=0), signed=True) for figure in _FIGURES]

    def levels(self) -> list[str]:
        """Return AUROC and accuracy of each method at one alpha."""
        return [
            " / ".join(
                f"{100 * self.figures(method, _SHOWN_ALPHA, figure).mean():.1f}" for figure in ("auroc", "accuracy")
            )
            for method in _SHOWN_METHODS
        ]

    def harm(self, method: str) -> tuple[list[int], list[float]]:
        """Return in how many cells the method is below the probe by two standard errors, and by how much at most.

        Both in AUROC, accuracy and Brier score; paired by seed.
        """
        counts, worst = [], []
        for figure, sign in zip(_FIGURES, (1.0, 1.0, -1.0), strict=True):
            losses = [sign * (self.figures("probe", a, figure) - self.figures(method, a, figure)) for a in ALPHAS]
            means = np.array([loss.mean() for loss in losses])
            errors = np.array([loss.std(ddof=1) / np.sqrt(loss.size) for loss in losses])
            counts.append(int(np.sum(means > 2.0 * errors)))
            worst.append(float(means.max()))
        return counts, worst


def harm_table(settings: list[Setting]) -> Table:
    """Return how often, and how far, methods fall below the probe alone."""
    table = Table(
        "Cells (settings x experts x alpha) more than two standard errors below the probe alone, and the largest loss "
        "in points of 100: AUROC / accuracy / Brier",
        ["settings", "cells", *(f"{method}{part}" for method in _ROUTERS for part in ("", ", largest loss"))],
    )
    for family in dict.fromkeys(setting.name.split()[0] for setting in settings):
        members = [setting for setting in settings if setting.name.split()[0] == family]
        row = [family, str(len(members) * len(ALPHAS))]
        for method in _ROUTERS:
            found = [member.harm(method) for member in members]
            row.append(" / ".join(str(count) for count in np.sum([counts for counts, _ in found], axis=0)))
            largest = np.max([worst for _, worst in found], axis=0).clip(0.0)
            row.append(" / ".join(f"{100 * loss:.1f}" for loss in largest))
        table.rows.append(row)
    return table


def violation_table(settings: list[Setting]) -> Table:
    """Return how often CTD's realised rate exceeded alpha, and in brackets how often it should on that many rows."""
    counted = [setting for setting in settings if "violations" in setting.result]
    table = Table(
        "Share of random splits in which the realised rate exceeds alpha, and in brackets what the theory expects on "
        "that many rows, in points of 100",
        ["setting", "splits", "rows", *(f"alpha {alpha:g}" for alpha in ALPHAS)],
    )
    for setting in counted:
        cells = setting.result["violations"]
        shares = [f"{100 * cell['ctd']:.1f} ({100 * cell['expected']:.1f})" for cell in cells]
        table.rows.append([setting.name, str(cells[0]["splits"]), str(cells[0]["rows"]), *shares])
    return table


def main(files: list[Path]) -> None:
    """Print the tables as Markdown."""
    settings = [Setting(file.stem.replace("_", " "), json.loads(file.read_text(encoding="utf-8"))) for file in files]
    margins = Table(
        "CTD minus calibrated uncertainty, mean over alpha (Brier: less is better), and Spearman of d with v, "
        "in points of 100",
        ["setting", "AUROC", "accuracy", "Brier", "Spearman"],
        [[setting.name, *setting.margins(), mean_and_error(setting.result["spearman"])] for setting in settings],
    )
    levels = Table(
        f"AUROC / accuracy at alpha {_SHOWN_ALPHA:g}, in points of 100",
        ["setting", *_SHOWN_METHODS],
        [[setting.name, *setting.levels()] for setting in settings],
    )
    tables = (margins, levels, harm_table(settings), violation_table(settings))
    print("\n\n".join(table.markdown() for table in tables))


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
