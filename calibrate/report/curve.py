"""The grid at every budget of the explorer: numbers with errors, certificates, and rates of the groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibrate.evaluate.figures import Estimate, Figure, measure
from calibrate.evaluate.grid import Grid
from calibrate.report.words import plain
from ctd_guardrail.policy.budget import Certificate, Guarantee, Status, round_up
from ctd_guardrail.policy.envelope import ALPHA_HIGH, ALPHA_LOW

__all__ = ["Point", "read_curve"]

_DELEGATING = ("uncertainty", "ctd")


@dataclass(frozen=True, slots=True)
class Point:
    """The cascade at one budget.

    Attributes:
        alpha: The budget.
        certificate: Threshold, count and expected rate; None if the guarantee does not cover this alpha.
        problem: Why there is no threshold; empty if there is one.
        figures: Method -> figure -> estimate, for the probe, the expert alone, uncertainty, this policy (``ctd``) and
            the oracle.
        gain: Accuracy of ``ctd`` minus that of ``uncertainty``, with the error of the paired difference.
        group_rates: Group -> share of its test rows that ``ctd`` sends to the expert, the largest group first.
    """

    alpha: float
    certificate: Certificate | None
    problem: str
    figures: Mapping[str, Mapping[str, Estimate]]
    gain: Estimate
    group_rates: Mapping[str, float]


def read_curve(grid: Grid, alphas: Sequence[float]) -> Iterator[Point]:
    """Yield the grid at each budget.

    Args:
        grid: Under the guarantee ``exact`` or ``simultaneous``.
        alphas: Budgets in (0, 1).

    Raises:
        ConfigError: An alpha or delta lies outside (0, 1).
        DataError: All rows have one label.
    """
    rows = grid.rows
    groups = _groups_by_size(rows.group)
    # The cascade merges the expert's score with the probe's. The expert alone does not.
    alone = measure(rows.label, rows.expert, rows.clusters, tau=grid.tau)
    fixed = {
        "probe": _estimates(grid.cell("probe", alphas[0]).figures),
        "expert": _estimates({**alone, "rate": grid.cell("expert", alphas[0]).figures["rate"]}),
    }
    for alpha in alphas:
        is_covered = grid.guarantee is not Guarantee.SIMULTANEOUS or ALPHA_LOW <= alpha <= ALPHA_HIGH
        certificate = grid.methods.certify("ctd", alpha) if is_covered else None
        cells = {name: grid.cell(name if is_covered else "probe", alpha) for name in _DELEGATING}
        cells["oracle"] = grid.cell("oracle", alpha)
        rates = grid.group_rates(cells["ctd"].delegated)
        yield Point(
            alpha=alpha,
            certificate=certificate,
            problem=_problem(alpha, certificate),
            figures=fixed | {name: _estimates(cell.figures) for name, cell in cells.items()},
            gain=(cells["ctd"].figures["accuracy"] - cells["uncertainty"].figures["accuracy"]).estimate,
            group_rates={name: rates[name] for name in groups},
        )


def _estimates(figures: Mapping[str, Figure]) -> dict[str, Estimate]:
    """Return the figures without their influences: a curve has hundreds of them."""
    return {name: figure.estimate for name, figure in figures.items()}


def _groups_by_size(group: list[str] | None) -> list[str]:
    names, counts = np.unique(np.asarray(group or []), return_counts=True)
    return [name for _, name in sorted(zip((-counts).tolist(), names.tolist(), strict=True))]


def _problem(alpha: float, certificate: Certificate | None) -> str:
    if certificate is None:
        return (
            f"A budget that is chosen after looking is certified from {plain(ALPHA_LOW)} to {plain(ALPHA_HIGH)} only; "
            f"{plain(alpha)} lies outside."
        )
    if certificate.status is Status.INFEASIBLE:
        smallest = (100 * round_up(certificate.alpha_min)).normalize()
        data = "rows" if certificate.max_turns == 1 else "conversations"
        return (
            f"{certificate.n:,} calibration {data} cannot certify {plain(alpha)}: it takes {certificate.n_min:,}. "
            f"The smallest budget that these {data} can certify is {smallest:f}%."
        )
    return ""
