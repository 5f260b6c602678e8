"""Calls of a paced threshold, at rates of d > lambda below, at and above alpha.

Drawn scores, and the rule that runs. The certificate rests on 1,000 rows at alpha = .1. A busy service has 2,000
requests an hour, so its reserve grows to 200 calls. A quiet one has 100, and stays at the least reserve.
"""

from __future__ import annotations

import argparse
from typing import Final

import numpy as np
from scipy.special import ndtri

from benchmarks.table import Table, add_csv_option
from ctd_guardrail.policy.budget import certify, sort_scores
from ctd_guardrail.policy.pace import Pace, PacedRule, Period
from ctd_guardrail.policy.rule import ThresholdRule
from ctd_guardrail.text.conversation import Conversation, Message

COLUMNS: Final = ("rate_without", "calls_per_request", "lost_busy", "lost_quiet")
ALPHA, DELTA = 0.1, 0.05
RATES: Final = (0.08, 0.09, 0.1, 0.12, 0.15, 0.2)
REQUESTS: Final = 30_000
DRAWS: Final = 10
BUSY, QUIET = 2_000, 100
UNIT: Final = Conversation((Message("user", "drawn"),))


def main() -> None:
    """Measure, and print one row for each rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_csv_option(parser)
    options = parser.parse_args()
    table = Table(COLUMNS)
    for rate in RATES:
        busy, quiet = (
            np.mean([measure(rate, hourly, seed) for seed in range(DRAWS)], axis=0) for hourly in (BUSY, QUIET)
        )
        table.add(f"{rate:.3f}", f"{busy[0]:.3f}", f"{busy[1]:.3f}", f"{quiet[1]:.3f}")
    table.publish(options.csv)


def measure(rate: float, hourly: int, seed: int) -> tuple[float, float]:
    """Return calls per request, and the share of the calls without a pace that is lost."""
    rng = np.random.default_rng(seed)
    calibration = sort_scores(rng.normal(size=1000))
    certified = ThresholdRule(certify(calibration, ALPHA, DELTA).threshold)
    now = 0.0
    pace = Pace(ALPHA, Period.HOUR.seconds, clock=lambda: now)
    rule = PacedRule.of(certified, calibration, Period.HOUR, pace)
    scores = rng.normal(size=REQUESTS) + certified.threshold + ndtri(rate)
    calls = 0
    for d in scores.tolist():
        now += Period.HOUR.seconds / hourly
        calls += rule.delegates(d, UNIT)
        pace.count_request()
    return calls / REQUESTS, 1.0 - calls / float((scores > certified.threshold).sum())


if __name__ == "__main__":
    main()
