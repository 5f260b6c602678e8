"""The cascade at every budget of a fine grid, under one guarantee.

Everything comes from the functions that certify and measure elsewhere; this file only arranges it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calibrate.evaluate.influence import FIGURES, cluster_error, mean_error, measure_with_influence
from calibrate.evaluate.methods import Methods
from calibrate.evaluate.rows import ScoredRows
from calibrate.report.words import plain
from ctd_guardrail.policy.budget import Certificate, Guarantee, Status, certify, sort_scores
from ctd_guardrail.policy.envelope import ALPHA_HIGH, ALPHA_LOW
from ctd_guardrail.policy.store import CalibrationScores

__all__ = ["COMPARED", "Figure", "Point", "curve"]

COMPARED: Final = ("probe", "uncertainty", "ctd", "expert", "oracle")
"""Methods of :class:`calibrate.evaluate.methods.Methods` that are shown side by side."""

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that was measured on the test rows.

    Attributes:
        value: The number.
        error: Its standard error over the clusters of the test rows; NaN where there is one cluster.
    """

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Point:
    """The cascade at one budget.

    Attributes:
        alpha: The budget.
        certificate: Threshold, count and expected rate; None where the guarantee says nothing of this alpha.
        problem: Why there is no threshold; empty where there is one.
        figures: Method -> name -> what was measured: those of :data:`calibrate.evaluate.influence.FIGURES`,
            ``false_alarms`` and ``rate``.
        gain: Accuracy of ``ctd`` minus that of ``uncertainty``, with the error of the paired difference.
        group_rates: Group -> share of its test rows that ``ctd`` sends to the expert.
    """

    alpha: float
    certificate: Certificate | None
    problem: str
    figures: Mapping[str, Mapping[str, Figure]]
    gain: Figure
    group_rates: Mapping[str, float]


def curve(
    rows: ScoredRows,
    calibration: CalibrationScores,
    alphas: tuple[float, ...],
    *,
    delta: float,
    tau: float = 0.5,
    seed: int = 0,
    guarantee: Guarantee = Guarantee.EXACT,
) -> Iterator[Point]:
    """Yield the cascade at each budget.

    Args:
        rows: Test rows.
        calibration: Scores behind the certificates.
        alphas: Budgets in (0, 1).
        delta: Error probability of each certificate.
        tau: Scores of at least tau block.
        seed: Of the methods' random order.
        guarantee: ``exact`` or ``simultaneous``.

    Raises:
        ConfigError: An alpha or delta lies outside (0, 1).
        DataError: The columns differ in length, hold values that are not finite, or hold rows of one label only.
    """
    rows.check()
    methods = Methods(rows, calibration, delta=delta, tau=tau, seed=seed, guarantee=guarantee)
    scores = sort_scores(calibration.d)
    groups = _group_members(rows)
    measured = _Measured(rows, tau)
    nobody = np.zeros(rows.label.size, dtype=np.bool_)
    # Alone, the expert's score is not merged with the probe's.
    fixed = {"probe": measured(nobody), "expert": _measure(rows, rows.expert, ~nobody, tau)}
    for alpha in alphas:
        is_covered = guarantee is not Guarantee.SIMULTANEOUS or ALPHA_LOW <= alpha <= ALPHA_HIGH
        certificate = certify(scores, alpha, delta, guarantee=guarantee) if is_covered else None
        chosen = {
            "uncertainty": methods.delegate("uncertainty", alpha).rows if is_covered else nobody,
            "ctd": methods.delegate("ctd", alpha).rows if is_covered else nobody,
            "oracle": methods.delegate("oracle", alpha).rows,
        }
        yield Point(
            alpha=alpha,
            certificate=certificate,
            problem=_problem(alpha, certificate),
            figures=fixed | {name: measured(delegated) for name, delegated in chosen.items()},
            gain=_paired_gain(rows, chosen["ctd"], chosen["uncertainty"], tau),
            group_rates={name: float(chosen["ctd"][members].mean()) for name, members in groups.items()},
        )


class _Measured:
    """Figures by set of delegated rows: neighbouring budgets often delegate the same."""

    def __init__(self, rows: ScoredRows, tau: float) -> None:
        self._rows, self._tau = rows, tau
        self._known: dict[bytes, dict[str, Figure]] = {}

    def __call__(self, delegated: BoolArray) -> dict[str, Figure]:
        key = np.packbits(delegated).tobytes()
        if key not in self._known:
            self._known[key] = _measure(self._rows, self._rows.cascade_score(delegated), delegated, self._tau)
        return self._known[key]


def _measure(rows: ScoredRows, score: FloatArray, delegated: BoolArray, tau: float) -> dict[str, Figure]:
    clusters = rows.clusters
    metrics, influences = measure_with_influence(rows.label, score, tau=tau)
    figures = {name: Figure(getattr(metrics, name), cluster_error(influences[name], clusters)) for name in FIGURES}
    figures["false_alarms"] = Figure(*mean_error((score >= tau).astype(np.float64), rows.label == 0, clusters))
    figures["rate"] = Figure(*mean_error(delegated.astype(np.float64), np.ones_like(delegated), clusters))
    return figures


def _paired_gain(rows: ScoredRows, one: BoolArray, other: BoolArray, tau: float) -> Figure:
    """Return the difference in accuracy on the same rows."""
    right = [(rows.cascade_score(delegated) >= tau) == (rows.label == 1) for delegated in (one, other)]
    difference = right[0].astype(np.float64) - right[1].astype(np.float64)
    return Figure(*mean_error(difference, np.ones(difference.size, dtype=np.bool_), rows.clusters))


def _group_members(rows: ScoredRows) -> dict[str, BoolArray]:
    """Return each group's rows, the largest group first."""
    if rows.group is None:
        return {}
    names = np.asarray(rows.group)
    members = {str(name): names == name for name in np.unique(names)}
    return dict(sorted(members.items(), key=lambda item: (-int(item[1].sum()), item[0])))


def _problem(alpha: float, certificate: Certificate | None) -> str:
    if certificate is None:
        return (
            f"A budget that is chosen after looking is certified from {plain(ALPHA_LOW)} to {plain(ALPHA_HIGH)} only; "
            f"{plain(alpha)} lies outside."
        )
    if certificate.status is Status.INFEASIBLE:
        return (
            f"{certificate.n:,} calibration rows cannot certify {plain(alpha)}: it takes {certificate.n_min:,}. "
            f"The smallest budget that these rows can certify is {100 * certificate.alpha_min:.2f}%."
        )
    return ""
