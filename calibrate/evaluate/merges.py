"""Ways to make one score of the probe's and the expert's, on the same delegated rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calibrate.evaluate.curves import columns_with_errors, figures_with_errors
from calibrate.evaluate.methods import Methods
from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.table import Record, Table
from calibrate.train.platt import fit_scaling
from ctd_guardrail.policy.store import CalibrationScores
from ctd_guardrail.probes.merge import Merge, log_odds

__all__ = ["merges_table", "stack"]


def merges_table(
    rows: ScoredRows, calibration: CalibrationScores, methods: Methods, alphas: Sequence[float], *, tau: float
) -> Table:
    """Return the figures of CTD under each merge.

    All merges judge the same rows: which are delegated, and so the certificate, does not depend on the merge.
    """
    merges = {"policy": rows.merge, "replace": Merge(), "average": Merge(kind="average")}
    stacked = stack(calibration)
    if stacked is not None:
        merges["stacking"] = stacked
    records: list[Record] = []
    for alpha in alphas:
        delegated = methods.delegate("ctd", alpha).rows
        for name, merge in merges.items():
            score = replace(rows, merge=merge).cascade_score(delegated)
            figures = figures_with_errors(rows.label, score, rows.clusters, tau=tau)
            records.append({"merge": name, "alpha": alpha, **figures})
    return Table(
        "merges",
        "CTD's figures by what becomes of the probe's score where the expert is asked",
        {
            "merge": "policy: as the policy says; replace: the expert's score; average: of both; "
            "stacking: logistic in both log-odds, fitted to the labelled calibration rows",
            "alpha": "budget",
        },
        columns_with_errors(),
        tuple(records),
    )


def stack(calibration: CalibrationScores) -> Merge | None:
    """Fit a stacking of both scores to the calibration rows; None where they are not labelled with both labels."""
    held = calibration.scored
    if held.label is None or held.expert is None or np.unique(held.label).size == 1:
        return None
    fitted = fit_scaling(held.label, log_odds(held.p), log_odds(held.expert))
    return Merge(kind="stacking", intercept=fitted.bias, probe=fitted.slopes[0], expert=fitted.slopes[1])
