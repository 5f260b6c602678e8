"""Ways to merge the scores of probe and expert, compared on the same delegated rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calibrate.evaluate.curves import columns_with_errors, figures_with_errors
from calibrate.evaluate.figures import measure
from calibrate.evaluate.grid import Grid
from calibrate.evaluate.table import Record, Table
from calibrate.train.platt import fit_scaling
from ctd_guardrail.policy.store import CalibrationScores
from ctd_guardrail.probes.merge import Merge, log_odds

__all__ = ["fit_stacking", "merges_table"]


def merges_table(grid: Grid, alphas: Sequence[float]) -> Table:
    """Return the figures of CTD under each merge.

    Every merge judges the same rows: delegation, and therefore the certificate, does not depend on the merge.
    """
    rows = grid.rows
    merges = {"policy": rows.merge, "replace": Merge(), "average": Merge(kind="average")}
    stacking = fit_stacking(grid.calibration)
    if stacking is not None:
        merges["stacking"] = stacking
    records: list[Record] = []
    for alpha in alphas:
        delegated = grid.methods.delegate("ctd", alpha).rows
        for name, merge in merges.items():
            score = replace(rows, merge=merge).cascade_score(delegated)
            figures = figures_with_errors(measure(rows.label, score, rows.clusters, tau=grid.tau))
            records.append({"merge": name, "alpha": alpha, **figures})
    return Table(
        "merges",
        "CTD's figures by the way that the scores of probe and expert are merged",
        {
            "merge": "policy: as the policy does; replace: the expert's score; average: of both; "
            "stacking: logistic in both log-odds, fitted to the labelled calibration rows",
            "alpha": "budget",
        },
        columns_with_errors(),
        tuple(records),
    )


def fit_stacking(calibration: CalibrationScores) -> Merge | None:
    """Fit a stacking of both scores to the calibration rows; None without labelled rows of both labels."""
    held = calibration.scored
    if held.label is None or held.expert is None or np.unique(held.label).size == 1:
        return None
    fitted = fit_scaling(held.label, log_odds(held.p), log_odds(held.expert))
    return Merge(kind="stacking", intercept=fitted.bias, probe=fitted.slopes[0], expert=fitted.slopes[1])
