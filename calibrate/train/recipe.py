"""The training of one candidate: from labelled activations to the probes of a policy.

Read :func:`train_candidate` first. Each step reads out-of-sample scores of the step before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from calibrate.config.recipe import Recipe
from calibrate.train.cascade import Cascade, assemble, fit_expert_heads
from calibrate.train.eta import fit_eta
from calibrate.train.learner import Fit, Learner
from calibrate.train.merging import compare_merges
from calibrate.train.probe import fit_probe
from calibrate.train.rows import TrainingRows
from ctd_guardrail._typing import IntArray
from ctd_guardrail.probes.merge import Merge
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.spec import Reduction

__all__ = ["TrainedCandidate", "train_candidate"]


_SCALED: Final = {"none": (False,), "platt": (True,), "auto": (False, True)}


@dataclass(frozen=True, slots=True)
class TrainedCandidate:
    """Both probes and the merge, as the rail runs them.

    Attributes:
        probes: p and d of every window.
        merge: Score of a delegated row.
        record: Choices that the training made, as JSON.
    """

    probes: Probes
    merge: Merge
    record: dict[str, Any]


def train_candidate(
    rows: TrainingRows,
    kinds: tuple[Reduction, ...],
    recipe: Recipe,
    *,
    seed: int,
    safety: TrainingRows | None = None,
    probe_columns: IntArray | None = None,
    measured: bool = True,
) -> TrainedCandidate:
    """Train the probes of one candidate.

    Args:
        rows: The rows that delegation is learnt on, with the columns that its heads read.
        kinds: Reductions whose average the heads are.
        recipe: Scaling and merge.
        seed: The same rows and seed give the same probes.
        safety: Rows of another source that the safety probe is trained on; None: ``rows``.
        probe_columns: Columns that the safety probe reads, ascending; None: all.
        measured: Whether the record states how well the held-out d agrees with v. Kinds that read tokens train five
            more fits for it.

    Raises:
        DataError: There are too few clusters for cross-validation.
    """
    source = Learner.of(rows if safety is None else safety, kinds, seed, columns=probe_columns)
    learner = source if safety is None else Learner.of(rows, kinds, seed)

    probe = fit_probe(source, rows, probe_columns)  # p
    eta = None if safety is None else fit_eta(learner, source)  # P(y=1|x); on its own rows the probe is eta
    cascades = [  # e1 and e0, for each scaling
        fit_expert_heads(learner, probe, eta, merge=recipe.merge, scaled=scaled) for scaled in _SCALED[recipe.calibrate]
    ]
    best = cascades[0] if len(cascades) == 1 else min(cascades, key=lambda cascade: cascade.quality["brier"])
    return TrainedCandidate(assemble(best), best.merge, _record(kinds, recipe, cascades, best, measured=measured))


def _record(
    kinds: Sequence[Reduction], recipe: Recipe, cascades: Sequence[Cascade], best: Cascade, *, measured: bool
) -> dict[str, Any]:
    delegation: dict[str, Any] = {name: _of_head(kinds, best.heads, name) for name in ("e1", "e0")}
    if best.eta is not None:
        delegation["eta"] = _of_head(kinds, best.eta, "eta")
    record: dict[str, Any] = {"safety": _of_head(kinds, best.probe.fits, "p"), "delegation": delegation}
    if len(cascades) > 1:
        briers = [cascade.quality["brier"] for cascade in cascades]
        record["calibrate"] = {"platt": best is cascades[1], "brier": dict(zip(("none", "platt"), briers, strict=True))}
    if measured:
        rows, scale = best.rows, best.merge.expert_scale
        merges = compare_merges(rows.labels, best.p, best.d, rows.expert, scale)
        record["merge"] = {"kind": recipe.merge, "alternatives": merges}
        delegation["cross_fitted"] = best.agreement()
    return record


def _of_head(kinds: Sequence[Reduction], fits: Sequence[Fit], head: str) -> dict[str, Any]:
    """Return the records of one head: of its linear fit, if there is one, and of every other kind."""
    found: dict[str, Any] = {}
    for kind, fit in zip(kinds, fits, strict=True):
        record = fit.record()
        found |= record[head] if kind == "mean" else {kind: record}
    return found
