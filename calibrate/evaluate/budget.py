"""What becomes of the budget: the rate that it comes to, the groups that it goes to, and the threshold it sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr
from scipy.stats import betabinom

from calibrate.evaluate.curves import columns_with_errors, figures_with_errors
from calibrate.evaluate.delegation import proportion_interval
from calibrate.evaluate.methods import Methods
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.table import Record, Table
from calibrate.risk.splits import one_per_cluster
from ctd_guardrail.policy.guarantees import largest_count, max_exceedances

__all__ = ["SPLITS", "composition_table", "sensitivity_table", "splits_table"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SPLITS: Final = 500
_CHUNK: Final = 50


def composition_table(rows: ScoredRows, methods: Methods, alphas: Sequence[float]) -> Table:
    """Return figure 10 of the paper: which groups the delegated rows come from."""
    group = np.array(["all"] * rows.label.size if rows.group is None else rows.group)
    names = np.unique(group).tolist()
    records: list[Record] = []
    for method in ("uncertainty", "ctd"):
        for alpha in alphas:
            delegated = methods.delegate(method, alpha).rows
            records += [
                {
                    "method": method,
                    "alpha": alpha,
                    "group": name,
                    "rate": float(delegated[group == name].mean()),
                    "share": float((group[delegated] == name).mean()) if delegated.any() else None,
                    "share_of_rows": float((group == name).mean()),
                }
                for name in names
            ]
    return Table(
        "composition",
        "Groups that the delegated rows come from; the budget holds over the mixture, not in each group",
        {"method": "who chooses the rows", "alpha": "budget", "group": "group of the rows"},
        {
            "rate": "share of the group's rows that go to the expert",
            "share": "share of the delegated rows that are of this group",
            "share_of_rows": "share of all rows that are of this group",
        },
        tuple(records),
    )


def sensitivity_table(rows: ScoredRows, *, tau: float, steps: int = 40) -> Table:
    """Return the cascade's figures at thresholds over the whole range of d."""
    records: list[Record] = []
    for share in np.linspace(0.0, 1.0, steps + 1).tolist():
        threshold = float(np.quantile(rows.d, 1.0 - share))
        delegated = rows.d > threshold
        figures = figures_with_errors(rows.label, rows.cascade_score(delegated), rows.clusters, tau=tau)
        records.append({"share": share, "threshold": threshold, "rate": float(delegated.mean()), **figures})
    return Table(
        "sensitivity",
        "The cascade's figures at every threshold: what moving lambda does",
        {"share": "lambda is the quantile of d that this share of the rows lies above, but for ties"},
        {"threshold": "lambda", "rate": "share of the rows that go to the expert", **columns_with_errors()},
        tuple(records),
    )


def splits_table(
    signals: Mapping[str, FloatArray],
    clusters: IntArray,
    alphas: Sequence[float],
    *,
    delta: float,
    calibration_rows: int | None = None,
    seed: int = 0,
    splits: int = SPLITS,
) -> Table:
    """Return figure 11 of the paper: rates that budgets come to when other rows calibrate.

    Held-out rows, one of each cluster, are split at random again and again; one part sets the threshold and the rate is
    counted on the other. ``plug_in`` takes the empirical (1 - alpha)-quantile of d for the threshold, as one would
    without a certificate. Random splits of rows without ties follow the beta-binomial law exactly, whatever the rows,
    so ``expected`` is what a right procedure shows here; ``exact`` is its error on the population, at most delta. They
    differ because finitely many rows to count on add luck of their own.

    Args:
        signals: Signal by name, each of shape [n].
        clusters: Shape [n].
        alphas: Budgets.
        delta: Error probability of each certificate.
        calibration_rows: How many rows calibrate in each split, where so many can be spared; None takes half.
        seed: Of the splits.
        splits: Number of splits.
    """
    kept = one_per_cluster(clusters.tolist(), seed=seed)
    count = max(1, min(calibration_rows or kept.size // 2, kept.size - 1))
    member = _random_members(kept.size, count, splits, seed)
    records: list[Record] = []
    for name, signal in signals.items():
        order = np.argsort(-signal[kept], kind="stable")
        drawn, falling = member[:, order], signal[kept][order]
        for alpha in alphas:
            rules = {name: max_exceedances(count, alpha, delta)}
            if name == "ctd":
                rules["plug_in"] = largest_count(count, alpha)
            records += [
                _violations(rule, alpha, k, _rates(falling, drawn, k), calibration=count, counted=kept.size - count)
                for rule, k in rules.items()
            ]
    return Table(
        "splits",
        f"Share of rows that go to the expert over {splits} random calibration splits",
        {"method": "what sets the threshold", "alpha": "budget"},
        {
            "rate": "mean share of rows that went to the expert",
            "rate_p05": "5% of the splits stay below this share",
            "rate_p95": "5% of the splits go beyond this share",
            "violations": "share of the splits that went over budget",
            "violations_low": "lower end of its 95% interval (Clopper and Pearson)",
            "violations_high": "upper end",
            "expected": "share of splits that a rule with k calibration rows above its threshold would show here",
            "exact": "P(the true rate exceeds alpha) of that rule; at most delta for a certificate",
            "k": "calibration rows above the threshold; -1 where alpha cannot be certified",
            "calibration_rows": "rows that calibrate in each split",
            "counted_rows": "rows that the rate is counted on",
            "splits": "number of splits",
        },
        tuple(records),
    )


def _random_members(total: int, count: int, splits: int, seed: int) -> NDArray[np.bool_]:
    """Return the calibration rows of each split, shape [splits, total]."""
    rng = np.random.default_rng(seed)
    member = np.zeros((splits, total), dtype=np.bool_)
    for start in range(0, splits, _CHUNK):
        chunk = member[start : start + _CHUNK]
        chosen = np.argpartition(rng.random(chunk.shape), count - 1, axis=1)[:, :count]
        np.put_along_axis(chunk, chosen, values=True, axis=1)
    return member


def _rates(falling: FloatArray, member: NDArray[np.bool_], k: int) -> FloatArray:
    """Return the share of the counted rows strictly above the (k + 1)-th largest calibration score, shape [splits].

    Args:
        falling: Scores in descending order, shape [n].
        member: Which of them calibrate, shape [splits, n].
        k: Calibration rows above the threshold; -1 delegates nothing.
    """
    splits, total = member.shape
    if k < 0:
        return np.zeros(splits)
    counted = total - int(member[0].sum())
    position = np.argmax(np.cumsum(member, axis=1, dtype=np.int32) > k, axis=1)
    # Rows that tie with the threshold are not delegated: count from the first of its value.
    first = np.searchsorted(-falling, -falling[position], side="left")
    above = np.array([np.count_nonzero(~row[:end]) for row, end in zip(member, first, strict=True)])
    rates: FloatArray = above / counted
    return rates


def _violations(method: str, alpha: float, k: int, rates: FloatArray, *, calibration: int, counted: int) -> Record:
    violations = int((rates > alpha).sum())
    low, high = proportion_interval(violations, rates.size)
    expected = float(betabinom.sf(largest_count(counted, alpha), counted, k + 1, calibration - k)) if k >= 0 else 0.0
    return {
        "method": method,
        "alpha": alpha,
        "rate": float(rates.mean()),
        "rate_p05": float(np.quantile(rates, 0.05)),
        "rate_p95": float(np.quantile(rates, 0.95)),
        "violations": violations / rates.size,
        "violations_low": low,
        "violations_high": high,
        "expected": expected,
        "exact": float(bdtr(k, calibration, alpha)) if k >= 0 else 0.0,
        "k": k,
        "calibration_rows": calibration,
        "counted_rows": counted,
        "splits": rates.size,
    }
