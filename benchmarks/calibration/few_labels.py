"""Bounds on the error rate from few labels: the labelled rows alone, with the expert's scores, and labels of all rows.

Drawn scores: three inputs in ten are unsafe, and probe and expert are calibrated logistic scores. Each figure is the
mean over the draws of the smallest bound that a calibration certifies at delta.
"""

from __future__ import annotations

import argparse
from typing import Final

import numpy as np
from scipy.special import expit, ndtr

from benchmarks.table import Table, add_csv_option
from calibrate.risk.losses import Metric, Risk, losses
from calibrate.risk.pvalues import binomial_p, smallest_level
from calibrate.risk.rows import Rows, Setting

COLUMNS: Final = ("expert_auroc", "rows", "label_share", "labelled_alone", "with_expert", "all_labelled")
DELTA: Final = 0.05
DRAWS: Final = 100
UNSAFE: Final = 0.3
PROBE: Final = 0.9
EXPERTS: Final = (1.05, 1.5, 2.2)
CALIBRATIONS: Final = ((1_000, 0.1), (5_000, 0.1), (5_000, 0.3), (20_000, 0.05))
KEPT: Final = Setting(np.inf)


def main() -> None:
    """Measure, and print one row for each expert and calibration."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_csv_option(parser)
    options = parser.parse_args()
    table = Table(COLUMNS)
    for separation in EXPERTS:
        for rows, share in CALIBRATIONS:
            bounds = np.mean([measure(separation, rows, share, seed) for seed in range(DRAWS)], axis=0)
            auroc = ndtr(np.sqrt(2.0) * separation)
            table.add(f"{auroc:.3f}", rows, share, *[f"{bound:.3f}" for bound in bounds.tolist()])
    table.publish(options.csv)


def measure(separation: float, n: int, share: float, seed: int) -> tuple[float, float, float]:
    """Return the bounds of one draw: labelled rows alone, with the expert, and labels of all rows."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < UNSAFE).astype(np.float64)
    probe, expert = (
        expit(2 * s * (s * (2 * label - 1) + rng.normal(size=n)) + np.log(UNSAFE / (1 - UNSAFE)))
        for s in (PROBE, separation)
    )
    some = np.where(rng.random(n) < share, label, np.nan)
    few = Rows(np.zeros(n), probe, expert, some, share)
    everything = Rows(np.zeros(n), probe, expert, label)
    return _exact(few), Risk(Metric.ERROR, 0.5).upper_bound(few, KEPT, delta=DELTA), _exact(everything)


def _exact(rows: Rows) -> float:
    counted = losses(Metric.ERROR, rows, KEPT)
    wrong = int(counted.sum())
    return smallest_level(lambda level: binomial_p(wrong, counted.size, level), DELTA)


if __name__ == "__main__":
    main()
