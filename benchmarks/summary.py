"""One table over several settings, from the JSON files that ``benchmarks/cascade.py --json`` has written."""

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


def main(files: list[Path]) -> None:
    """Print both tables as Markdown."""
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
    print(f"{margins.markdown()}\n\n{levels.markdown()}")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
