"""How the budget is spent: realised rates, groups, and the effect of the threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from scipy.special import bdtr
from scipy.stats import betabinom

from calibrate.evaluate.curves import columns_with_errors, figures_with_errors
from calibrate.evaluate.delegation import proportion_interval
from calibrate.evaluate.figures import measure
from calibrate.evaluate.grid import Grid
from calibrate.evaluate.methods import CERTIFIED
from calibrate.evaluate.table import Record, Table
from calibrate.risk.splits import one_per_cluster
from ctd_guardrail._typing import BoolArray, FloatArray, IntArray
from ctd_guardrail.policy.guarantees import largest_count, max_exceedances

__all__ = ["SPLITS", "composition_table", "sensitivity_table", "splits_table"]


SPLITS: Final = 500
_CHUNK: Final = 50
_STEPS: Final = 40  # from no row above the threshold to all rows


def composition_table(grid: Grid, alphas: Sequence[float]) -> Table:
    """Return figure 10 of the paper: the groups of the delegated rows."""
    rows = grid.rows
    group = np.array(["all"] * rows.label.size if rows.group is None else rows.group)
    names = np.unique(group).tolist()
    records: list[Record] = []
    for method in CERTIFIED:
        for alpha in alphas:
            delegated = grid.methods.delegate(method, alpha).rows
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
        "Groups of the delegated rows; the budget holds for all groups together, not for each",
        {"method": "how the rows are chosen", "alpha": "budget", "group": "group of the rows"},
        {
            "rate": "share of the group's rows that go to the expert",
            "share": "share of the delegated rows that are of this group",
            "share_of_rows": "share of all rows that are of this group",
        },
        tuple(records),
    )


def sensitivity_table(grid: Grid) -> Table:
    """Return the cascade's figures at thresholds over the whole range of d."""
    rows = grid.rows
    records: list[Record] = []
    for share in np.linspace(0.0, 1.0, _STEPS + 1).tolist():
        threshold = float(np.quantile(rows.d, 1.0 - share))
        delegated = rows.d > threshold
        figures = measure(rows.label, rows.cascade_score(delegated), rows.clusters, tau=grid.tau)
        rate = float(delegated.mean())
        records.append({"share": share, "threshold": threshold, "rate": rate, **figures_with_errors(figures)})
    return Table(
        "sensitivity",
        "The cascade's figures at every threshold lambda",
        {"share": "share of the rows above lambda, except for ties"},
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
    """Return figure 11 of the paper: realised rates over random choices of the calibration rows.

    Held-out rows, one of each cluster, are split at random many times: one part sets the threshold, the other counts
    the rate. ``plug_in`` takes the empirical (1 - alpha)-quantile of d as its threshold, without a certificate.

    Without ties, the count over random splits follows the beta-binomial law exactly, for any rows. ``expected`` is
    therefore what a correct procedure shows here. ``exact`` is its error on the population, at most delta. The two
    differ because finitely many counted rows add variance.

    Args:
        signals: Signal by name, each of shape [n].
        clusters: Shape [n].
        alphas: Budgets.
        delta: Error probability of each certificate.
        calibration_rows: Number of rows that calibrate in each split, if there are enough; None takes half.
        seed: Seed of the splits.
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
        {"method": "rule that sets the threshold", "alpha": "budget"},
        {
            "rate": "mean share of rows that went to the expert",
            "rate_p05": "5% of the splits stay below this share",
            "rate_p95": "5% of the splits go beyond this share",
            "violations": "share of the splits that went over budget",
            "violations_low": "lower end of its 95% interval (Clopper and Pearson)",
            "violations_high": "upper end",
            "expected": "share of splits over budget that theory expects here for a rule with this k",
            "exact": "P(the true rate exceeds alpha) of that rule; at most delta for a certificate",
            "k": "calibration rows above the threshold; -1 if alpha cannot be certified",
            "calibration_rows": "rows that calibrate in each split",
            "counted_rows": "rows that the rate is counted on",
            "splits": "number of splits",
        },
        tuple(records),
    )


def _random_members(total: int, count: int, splits: int, seed: int) -> BoolArray:
    """Return the calibration rows of each split, shape [splits, total]."""
    rng = np.random.default_rng(seed)
    member = np.zeros((splits, total), dtype=np.bool_)
    for start in range(0, splits, _CHUNK):
        chunk = member[start : start + _CHUNK]
        chosen = np.argpartition(rng.random(chunk.shape), count - 1, axis=1)[:, :count]
        np.put_along_axis(chunk, chosen, values=True, axis=1)
    return member


def _rates(falling: FloatArray, member: BoolArray, k: int) -> FloatArray:
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
