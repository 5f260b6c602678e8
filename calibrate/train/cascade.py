"""One cascade of trained heads: its held-out scores, its quality, and the probes that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.special import expit

from calibrate.train.learner import Fit, Learner, mean_values
from calibrate.train.merging import MergeKind, Scale, delegated_half, fit_expert_scale, fit_merge, fit_probe_scale
from calibrate.train.parts import join_parts
from calibrate.train.probe import SafetyProbe
from calibrate.train.quality import cascade_quality
from calibrate.train.rows import TrainingRows
from calibrate.train.targets import expert_targets
from ctd_guardrail._typing import FloatArray
from ctd_guardrail.probes.merge import Merge
from ctd_guardrail.probes.probes import Probes, scores
from ctd_guardrail.probes.spec import OUTPUTS

__all__ = ["Cascade", "assemble", "fit_expert_heads"]


@dataclass(frozen=True)
class Cascade:
    """All heads for one choice of scales and merge. Scores are out of sample, of shape [rows].

    Scores are computed when they are read: kinds that read tokens train five more fits for them.

    Attributes:
        rows: The rows that delegation is learnt on.
        probe: The safety probe.
        eta: Fits of P(y=1|x), one of each kind; None: the safety probe.
        heads: Fits of e1 and e0, one of each kind.
        probe_scale: Slope and offset of the Platt scaling of p.
        merge: Score of a delegated row.
    """

    rows: TrainingRows
    probe: SafetyProbe
    eta: Sequence[Fit] | None
    heads: Sequence[Fit]
    probe_scale: Scale
    merge: Merge

    @property
    def p(self) -> FloatArray:
        """The safety probe."""
        return expit(self._logit)

    @property
    def merged(self) -> FloatArray:
        """The cascade's score of each row if it is delegated."""
        return self.merge(self.p, self.rows.expert)

    @cached_property
    def d(self) -> FloatArray:
        """The delegation value, by the function that the rail uses."""
        values = {"p": self._logit, **mean_values([fit.held_out() for fit in self.heads])}
        values |= {"eta": self._logit} if self.eta is None else mean_values([fit.held_out() for fit in self.eta])
        heads = torch.from_numpy(np.stack([values[name] for name in OUTPUTS], axis=1))
        return scores(heads)[:, 1].numpy()

    @cached_property
    def quality(self) -> dict[str, float]:
        """Figures of the cascade, averaged over budgets."""
        return cascade_quality(self.rows.labels, self.p, self.d, self.merged)

    @property
    def _logit(self) -> FloatArray:
        slope, offset = self.probe_scale
        return slope * self.probe.logit + offset

    def agreement(self) -> dict[str, float]:
        """Return how well d predicts v on the training rows.

        In-sample scores would bring p nearer to the label than it will be in service. v would be too small, and d too
        good.
        """
        value = (2.0 * self.rows.labels - 1.0) * (self.merged - self.p)
        return {
            "mean_value": float(value.mean()),
            "spearman": self.quality["spearman"],
            "r2": float(1.0 - np.square(value - self.d).mean() / max(value.var(), 1e-12)),
            "brier": self.quality["brier"],
            "auroc": self.quality["auroc"],
        }


def fit_expert_heads(
    learner: Learner, probe: SafetyProbe, eta: Sequence[Fit] | None, *, merge: MergeKind, scaled: bool
) -> Cascade:
    """Fit e1 and e0, the mean score of a delegated row for each label.

    Args:
        learner: Rows that delegation is learnt on, the window of each, kinds and seed.
        probe: The safety probe.
        eta: Fits of P(y=1|x); None: the safety probe.
        merge: Score of a delegated row.
        scaled: Whether p and the expert's score are Platt-scaled first.
    """
    rows = learner.rows
    expert_scale = fit_expert_scale(rows.labels, rows.expert) if scaled else None
    probe_scale = (fit_probe_scale(rows.labels, probe.logit) if scaled else None) or (1.0, 0.0)
    replacing = Merge(expert_scale=expert_scale)
    # This merge does not read p, whose held-out values may take five fits.
    heads = learner.fit(expert_targets(rows.labels, replacing(rows.expert, rows.expert)))
    cascade = Cascade(rows, probe, eta, heads, probe_scale, replacing)
    if merge == "replace":
        return cascade
    # A merge is for delegated rows. Which rows those are is known now, with the expert's own score.
    sent = delegated_half(cascade.d)
    learnt = fit_merge(merge, rows.labels[sent], cascade.p[sent], rows.expert[sent], expert_scale)
    heads = learner.fit(expert_targets(rows.labels, learnt(cascade.p, rows.expert)))
    return replace(cascade, heads=heads, merge=learnt)


def assemble(cascade: Cascade) -> Probes:
    """Return the probes of a cascade, as the rail runs them."""
    share = 1.0 / len(cascade.probe.fits)
    members = [part for fit in cascade.probe.fits for part in fit.parts()]
    if cascade.eta is None:
        members = [part.shared("p", "eta") for part in members]
    slope, offset = cascade.probe_scale
    # The members add up to the head, so each takes its share of the offset.
    offset /= share * len(members)
    members = [part.rescaled(slope, offset, ("p", "eta") if cascade.eta is None else ("p",)) for part in members]
    others = [part for fit in (*(cascade.eta or ()), *cascade.heads) for part in fit.parts()]
    return join_parts([part.times(share) for part in (*members, *others)])
