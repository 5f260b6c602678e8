"""The exact certificate beside MAPIE on independent rows: broken budgets, use of the budget, and time.

Scores are uniform, so the rate of a threshold is known: 1 - threshold. A draw breaks the budget if the smallest
certified threshold delegates more than alpha. MAPIE chooses among 100 thresholds, fixed beforehand around 1 - alpha.
The closed form chooses among all n scores. All figures come from one run on one machine. Compare ratios between
machines, not milliseconds.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Final

import numpy as np

from benchmarks.table import Table, add_csv_option
from ctd_guardrail._typing import FloatArray
from ctd_guardrail.policy.budget import certify, sort_scores

COLUMNS: Final = ("rows", "method", "draws", "broken", "rate_of_alpha", "ms")
ALPHA, DELTA = 0.1, 0.05
DRAWS: Final = {1_000: 2_000, 10_000: 500, 100_000: 30}
CORRECTIONS: Final = ("bonferroni", "bonferroni_holm", "fixed_sequence")
THRESHOLDS: Final = np.linspace(0.85, 0.95, 100)

Method = Callable[[FloatArray], float]


def main() -> None:
    """Measure, and print one row for each size and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_csv_option(parser)
    options = parser.parse_args()
    methods = {"closed form": closed_form, **{f"MAPIE, {name}": mapie(name) for name in CORRECTIONS}}
    table = Table(COLUMNS)
    for n, draws in DRAWS.items():
        for name, method in methods.items():
            broken, rate, milliseconds = measure(method, n, draws)
            table.add(n, name, draws, f"{broken:.3f}", f"{rate / ALPHA:.3f}", f"{float(f'{milliseconds:.3g}'):g}")
    table.publish(options.csv)


def measure(method: Method, n: int, draws: int) -> tuple[float, float, float]:
    """Return the share of broken budgets, the mean rate, and the shortest time in milliseconds."""
    rates, times = [], []
    for seed in range(draws):
        scores = np.random.default_rng(seed).random(n)
        started = time.perf_counter()
        threshold = method(scores)
        times.append(time.perf_counter() - started)
        rates.append(1.0 - threshold)
    return float((np.array(rates) > ALPHA).mean()), float(np.mean(rates)), 1000 * min(times)


def closed_form(scores: FloatArray) -> float:
    """Return lambda of this package, from unsorted scores."""
    return certify(sort_scores(scores), ALPHA, DELTA).threshold


def mapie(correction: str) -> Method:
    """Return MAPIE with a correction for several tests: its smallest valid threshold."""
    from mapie.risk_control import BinaryClassificationController  # noqa: PLC0415 - slow to import, and optional

    def certified(scores: FloatArray) -> float:
        controller = BinaryClassificationController(
            predict_function=lambda x: np.column_stack([1 - x, x]),
            risk="predicted_positive_fraction",
            target_level=ALPHA,
            confidence_level=1 - DELTA,
            best_predict_param_choice="predicted_positive_fraction",
            list_predict_params=THRESHOLDS,
            fwer_method=correction,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            controller.calibrate(scores, np.zeros(scores.size, dtype=int))
        valid = controller.valid_predict_params
        return float(valid.min()) if len(valid) else 1.0

    return certified


if __name__ == "__main__":
    main()
