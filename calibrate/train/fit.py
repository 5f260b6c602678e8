"""One candidate, trained from end to end: safety probe, scales, merge, delegation value.

In this order, because each reads what the one before it says of rows that it has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from calibrate.config.training import TrainOptions
from calibrate.train.eta import fit_eta
from calibrate.train.learner import Fit, Learner, mean_values
from calibrate.train.merging import Scale, compare_merges, delegated_half, fit_expert_scale, fit_merge, fit_probe_scale
from calibrate.train.narrowed import fit_columns
from calibrate.train.parts import Part, assemble
from calibrate.train.quality import cascade_quality
from calibrate.train.rows import TrainingRows
from calibrate.train.targets import delegation_targets, label_target
from ctd_guardrail.probes.merge import Merge
from ctd_guardrail.probes.probes import Probes, extra_features, scores
from ctd_guardrail.probes.spec import Component, ProbeSpec, Reduction

__all__ = ["Fitted", "fit_candidate"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Both probes and the merge, as the rail runs them.

    Attributes:
        probes: p and d of every window.
        merge: The score of a delegated row.
        record: What was chosen on the way, as JSON.
    """

    probes: Probes
    merge: Merge
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Cascade:
    """A delegation value for one choice of scales.

    p, merged and d are held out, of shape [rows]; d is zero where nothing is measured.
    """

    parts: list[Part]
    merge: Merge
    p: FloatArray
    merged: FloatArray
    d: FloatArray
    record: dict[str, Any]


def fit_candidate(
    rows: TrainingRows,
    kinds: tuple[Reduction, ...],
    options: TrainOptions,
    *,
    seed: int,
    safety: TrainingRows | None = None,
    probe_columns: IntArray | None = None,
    measured: bool = True,
) -> Fitted:
    """Train the probes of one candidate.

    Without ``safety`` the same rows serve both probes: then eta, P(y=1|x) on these rows, is the safety probe.

    Args:
        rows: The rows that delegation is learnt on, with the columns that its heads read.
        kinds: Reductions whose average the heads are.
        options: What is learnt, and how it is put together.
        seed: The same rows and seed give the same probes.
        safety: Rows for the safety probe, where it is to come from another source.
        probe_columns: Columns that the safety probe reads, ascending; None: all.
        measured: Whether the record is to say how well the held-out d agrees with v, which probes that are trained by
            gradient descent take five more fits for.

    Raises:
        DataError: There are too few clusters for cross-validation, or too few rows for binary delegation.
    """
    # Brier scores decide on scales.
    measured |= options.calibrate == "auto"
    columns = np.arange(rows.pooled.values.shape[1]) if probe_columns is None else probe_columns
    labelled = rows if safety is None else safety
    # Of the rows that it is fitted to, the safety probe's own columns say which window speaks loudest.
    source = replace(Learner.of(labelled.columns(columns), kinds, options, seed), rows=labelled)
    learner = source if safety is None else Learner.of(rows, kinds, options, seed)
    probe = fit_columns(source, columns, {"p": label_target(source.rows.labels)})
    if safety is not None:
        logit = mean_values([fit.predict(rows) for fit in probe])["p"]
    elif measured or _needs_p(options):
        logit = mean_values([fit.held_out() for fit in probe])["p"]
    else:
        logit = np.zeros(len(rows))

    # On the rows that the safety probe is fitted to, it is eta itself.
    plug_in = options.delegation == "plug_in"
    eta = fit_eta(learner, source) if plug_in and safety is not None else None

    def cascade(scaled: bool) -> _Cascade:  # noqa: FBT001  # one of two
        return _fit_cascade(learner, probe, logit, eta, scaled=scaled, measured=measured)

    wanted = {"none": [False], "platt": [True], "auto": [False, True]}[options.calibrate]
    choices = [cascade(scaled) for scaled in wanted]
    best = min(choices, key=lambda choice: _quality(rows, choice)["brier"]) if len(choices) > 1 else choices[0]
    spec = ProbeSpec(
        delegation=options.delegation,
        components=_placeholder(options),
        costs=options.costs,
        features=options.features,
    )
    delegation = {"kind": options.delegation, **best.record}
    record: dict[str, Any] = {"safety": _records(kinds, probe, "p"), "delegation": delegation}
    if len(choices) > 1:
        briers = [_quality(rows, choice)["brier"] for choice in choices]
        record["calibrate"] = {"platt": best is choices[1], "brier": dict(zip(("none", "platt"), briers, strict=True))}
    if measured:
        merges = compare_merges(rows.labels, best.p, best.d, rows.expert, best.merge.expert_scale)
        record["merge"] = {"kind": options.merge, "alternatives": merges}
        delegation["cross_fitted"] = _agreement(rows.labels, best)
    return Fitted(assemble(spec, best.parts), best.merge, record)


def _needs_p(options: TrainOptions) -> bool:
    """Whether anything but the record reads the safety probe's held-out scores."""
    plain = options.calibrate == "none" and options.merge == "replace"
    return options.delegation != "plug_in" or bool(options.features) or not plain


def _fit_cascade(
    learner: Learner,
    probe: Sequence[Fit],
    unscaled: FloatArray,
    eta: Sequence[Fit] | None,
    *,
    scaled: bool,
    measured: bool,
) -> _Cascade:
    rows, options = learner.rows, learner.options
    probe_scale: Scale | None = fit_probe_scale(rows.labels, unscaled) if scaled else None
    expert_scale = fit_expert_scale(rows.labels, rows.expert) if scaled else None
    slope, offset = probe_scale or (1.0, 0.0)
    logit = slope * unscaled + offset
    p = expit(logit)
    merge = Merge(expert_scale=expert_scale)
    if options.merge != "replace":
        # A merge is for the rows that are delegated, and those are known once the expert's own score is merged.
        plain = replace(learner, options=options.model_copy(update={"merge": "replace"}))
        first = _fit_cascade(plain, probe, unscaled, eta, scaled=scaled, measured=True)
        sent = delegated_half(first.d)
        merge = fit_merge(options.merge, rows.labels[sent], p[sent], rows.expert[sent], expert_scale)
    merged = merge(p, rows.expert)
    targets = delegation_targets(options.delegation, rows.labels, p, merged, options.costs)
    members = [part for fit in probe for part in fit.parts()]
    values = {"p": logit}
    fits = learner.fit(targets, _extras(learner, logit, p))
    shares_eta = options.delegation == "plug_in" and eta is None
    if shares_eta:
        members = [part.shared("p", "eta") for part in members]
        values["eta"] = logit
    share = 1.0 / len(probe)
    # Members add up to the head, so each takes its part of the offset.
    offset /= share * len(members)
    members = [part.rescaled(slope, offset, ("p", "eta") if shares_eta else ("p",)) for part in members]
    record = {name: _records(learner.kinds, fits, name) for name in targets}
    if eta is not None:
        members += [part for fit in eta for part in fit.parts()]
        record["eta"] = _records(learner.kinds, eta, "eta")
        if measured:
            values |= mean_values([fit.held_out() for fit in eta])
    delegating = [part for fit in fits for part in fit.parts()]
    parts = [part.times(share) for part in [*(_with_features(part, options) for part in members), *delegating]]
    d = np.zeros(len(rows))
    if measured:
        d = _delegation(options, values | mean_values([fit.held_out() for fit in fits]))
    return _Cascade(parts, merge, p, merged, d, record)


def _extras(learner: Learner, logit: FloatArray, p: FloatArray) -> FloatArray:
    """Return the extra features of each row's window, as the rail computes them, shape [rows, features]."""
    names = learner.options.features
    if not names:
        return learner.no_extras()
    lengths = learner.rows.pooled.lengths[learner.chosen]
    return extra_features(names, torch.from_numpy(logit), torch.from_numpy(p), lengths).numpy()


def _with_features(part: Part, options: TrainOptions) -> Part:
    """Give a part that reads no extra features weights of zero on them."""
    return Part(part.component, part.tensors, part.bias, np.zeros((part.bias.size, len(options.features))))


def _placeholder(options: TrainOptions) -> tuple[Component, ...]:
    return (Component(outputs=("p", "eta", "e1", "e0") if options.delegation == "plug_in" else ("p", "value")),)


def _delegation(options: TrainOptions, values: Mapping[str, FloatArray]) -> FloatArray:
    """Return d from the values of the heads, by the function that the rail uses."""
    spec = ProbeSpec(delegation=options.delegation, components=_placeholder(options), costs=options.costs)
    columns = torch.from_numpy(np.stack([values[name] for name in spec.outputs], axis=1))
    return scores(spec, {}, columns, np.ones(len(columns), dtype=np.int64))[:, 1].numpy()


def _records(kinds: Sequence[Reduction], fits: Sequence[Fit], head: str) -> dict[str, Any]:
    """Return what is known of one head: of its linear fit where there is one, and of every other kind."""
    found: dict[str, Any] = {}
    for kind, fit in zip(kinds, fits, strict=True):
        record = fit.record()
        found |= record[head] if kind == "mean" else {kind: record}
    return found


def _quality(rows: TrainingRows, cascade: _Cascade) -> dict[str, float]:
    return cascade_quality(rows.labels, cascade.p, cascade.d, cascade.merged)


def _agreement(labels: FloatArray, cascade: _Cascade) -> dict[str, float]:
    """Return how well d predicts v on the training rows, every part of both from fits that have not seen the row.

    With in-sample scores p is nearer to the label than it will be in deployment: v comes out too small, and d too
    good.
    """
    value = (2.0 * labels - 1.0) * (cascade.merged - cascade.p)
    quality = cascade_quality(labels, cascade.p, cascade.d, cascade.merged)
    return {
        "mean_value": float(value.mean()),
        "spearman": quality["spearman"],
        "r2": float(1.0 - np.square(value - cascade.d).mean() / max(value.var(), 1e-12)),
        "brier": quality["brier"],
        "auroc": quality["auroc"],
    }
