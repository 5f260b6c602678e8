"""Time of certificates beside a sort of the same array, and time of one update of each monitor.

All figures come from one run on one machine. Compare ratios between machines, not milliseconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np

from benchmarks.table import Table, add_csv_option
from ctd_guardrail.monitors.audit_floor import AuditFloor
from ctd_guardrail.monitors.rate_alarm import RateAlarm
from ctd_guardrail.monitors.score_drift import ScoreDriftAlarm
from ctd_guardrail.policy.budget import Guarantee, certify, sort_scores
from ctd_guardrail.policy.envelope import critical_eta
from ctd_guardrail.policy.selection import Criterion, best_threshold

ALPHA, DELTA = 0.1, 0.05
SIZES = (10_000, 100_000, 1_000_000)
UPDATES = 20_000


COLUMNS: Final = ("subject", "rows", "figure", "value")


def main() -> None:
    """Measure, and print one row for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_csv_option(parser)
    options = parser.parse_args()

    table = Table(COLUMNS)
    for n in SIZES:
        times = certificate_times(n)
        table.extend(("certificate", n, figure, f"{float(f'{value:.3g}'):g}") for figure, value in times.items())
    table.extend(
        ("monitor", None, f"update of the {name}, us", f"{microseconds:.1f}")
        for name, microseconds in monitor_times().items()
    )
    table.publish(options.csv)


def certificate_times(n: int) -> dict[str, float]:
    """Return milliseconds for n scores, with ratios to a sort."""
    rng = np.random.default_rng(0)
    scores = rng.random(n)
    stored = np.sort(scores)
    label = rng.integers(0, 2, n).astype(np.float64)
    probe, expert = rng.random(n), rng.random(n)
    sort = _milliseconds(lambda: np.sort(scores))
    certificate = _milliseconds(lambda: certify(sort_scores(scores), ALPHA, DELTA))
    started = time.perf_counter()
    critical_eta(n, DELTA)  # kept for the certificates below
    envelope = 1000 * (time.perf_counter() - started)
    alphas = iter(np.linspace(0.05, 0.15, 10_000).tolist())
    budget = certify(stored, ALPHA, DELTA)
    row: dict[str, float] = {
        "sort, ms": sort,
        "sort and certify, ms": certificate,
        "in sorts": certificate / sort,
        "new alpha, exact, ms": _milliseconds(lambda: certify(stored, next(alphas), DELTA)),
        "simultaneous, ms": _milliseconds(
            lambda: certify(stored, next(alphas), DELTA, guarantee=Guarantee.SIMULTANEOUS)
        ),
        "next 1e4, ms": _milliseconds(
            lambda: certify(stored, next(alphas), DELTA, guarantee=Guarantee.NEXT, horizon=10_000)
        ),
        "eta, once, ms": envelope,
    }
    for criterion in (Criterion.ACCURACY, Criterion.AUROC):
        row[f"best by {criterion.value}, ms"] = _milliseconds(
            partial(best_threshold, budget, criterion, d=stored, probe=probe, expert=expert, label=label), runs=1
        )
    return row


def monitor_times() -> dict[str, float]:
    """Return microseconds for each update of each monitor, over a stream at the budget."""
    rng = np.random.default_rng(1)
    calibration = np.sort(rng.normal(size=1000))
    scores = rng.normal(size=UPDATES).tolist()
    calls = (rng.random(UPDATES) < ALPHA * 0.9).astype(int).tolist()
    rate, drift = RateAlarm(ALPHA), ScoreDriftAlarm(calibration, seed=0)
    floor = AuditFloor(0.01)
    return {
        "rate alarm": _per_update(lambda i: rate.update(calls[i])),
        "score drift alarm": _per_update(lambda i: drift.update(scores[i])),
        "audit floor": _per_update(lambda i: floor.update(missed=False if i % 100 == 0 else None)),
    }


def _milliseconds(work: Callable[[], object], runs: int = 15) -> float:
    """Return the shortest time of some runs, because other work on the machine only lengthens a run."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def _per_update(update: Callable[[int], object]) -> float:
    started = time.perf_counter()
    for i in range(UPDATES):
        update(i)
    return 1e6 * (time.perf_counter() - started) / UPDATES


if __name__ == "__main__":
    main()
