"""Probes that read every token: trained by gradient descent on the very reductions that the rail runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray

from calibrate.train.crossfit import FOLDS, assign_folds
from calibrate.train.descent import SCHEDULE, Schedule, batches, descend
from calibrate.train.parts import Part
from calibrate.train.rows import TrainingRows, over_rows
from calibrate.train.standardise import Standardiser
from calibrate.train.targets import Target
from ctd_guardrail.probes import reductions
from ctd_guardrail.probes.ragged import Ragged
from ctd_guardrail.probes.segments import Segments
from ctd_guardrail.probes.spec import Component, Output, Reduction

__all__ = ["TokenFit", "fit_tokens"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Heads of attention and multimax probes.
_HEADS: Final = 8
_BATCH: Final = 256
# Tokens of so many rows tell mean and scale of an activation well enough, and fit into memory in float64.
_STANDARDISING_ROWS: Final = 500


class _Model(torch.nn.Module):
    """One component on standardised tokens, with biases and extra features."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, component: Component, width: int, extras: int, generator: torch.Generator) -> None:
        super().__init__()
        self.component = component
        self.own = torch.nn.ParameterDict(
            {
                name: torch.randn(shape, generator=generator) / (10.0 * width**0.5)
                for name, shape in component.shapes(width).items()
            }
        )
        self.bias = torch.nn.Parameter(torch.zeros(len(component.outputs)))
        self.extra = torch.nn.Parameter(torch.zeros(len(component.outputs), extras))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, tokens: Ragged, extras: torch.Tensor) -> torch.Tensor:
        tensors = {name: cast("torch.Tensor", tensor) for name, tensor in self.own.items()}
        columns = ((tokens.values - self.mean) / self.scale) @ reductions.matrix(self.component, tensors).T
        segments = Segments.of(tokens.lengths, columns.device)
        return reductions.reduce(self.component, columns, segments) + self.bias + extras @ self.extra.T

    def part(self) -> Part:
        """Return what was learnt, on raw activations.

        z = (x - mean) / scale moves every column by a constant. A softmax does not see it; where columns are summed
        up it goes into the bias.
        """
        mean, scale = (tensor.double().numpy() for tensor in (self.mean, self.scale))
        raw = {name: tensor.detach().double().numpy() / scale for name, tensor in self.own.items()}
        bias = self.bias.detach().double().numpy().copy()
        for name, tensor in raw.items():
            if name != "query":
                bias -= (tensor @ mean).reshape(bias.size, -1).sum(axis=1)
        return Part(self.component, raw, bias, self.extra.detach().double().numpy())


@dataclass(slots=True)
class TokenFit:
    """An ensemble of components of one kind, and what fits without a fold say of it.

    Attributes:
        rows: The rows it was trained on.
        kind: How tokens are reduced.
        targets: What each head was to say.
        extras: Extra features, shape [rows, features].
        chosen: The window of each row that stands for it, shape [rows].
        seed: Of folds, starts and orders.
        seeds: Members of the ensemble.
        schedule: How long and how fast they were trained.
    """

    rows: TrainingRows
    kind: Reduction
    targets: Mapping[str, Target]
    extras: FloatArray
    chosen: IntArray
    seed: int
    seeds: int
    schedule: Schedule
    _members: list[_Model] = field(init=False)
    _epochs: list[int] = field(init=False)
    _held_out: dict[str, FloatArray] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Train the members, each with another fold of the rows to decide when to stop."""
        folds = assign_folds(self.rows.labels, self.rows.clusters, seed=self.seed)
        everything = np.arange(len(self.rows))
        fitted = [self._fit(everything, folds, stop=number % FOLDS, number=number) for number in range(self.seeds)]
        self._members, self._epochs = [model for model, _ in fitted], [epoch for _, epoch in fitted]

    def parts(self) -> list[Part]:
        """Return the members, scaled so that their sum is their mean."""
        return [model.part().times(1.0 / self.seeds) for model in self._members]

    def record(self) -> dict[str, Any]:
        """Return what was trained for how long, as JSON."""
        return {"kind": self.kind, "rows": len(self.rows), "seeds": self.seeds, "epochs": self._epochs}

    def held_out(self) -> dict[str, FloatArray]:
        """Return each head's value for every row, from fits that saw neither it nor its cluster. Trains five more."""
        if self._held_out is None:
            folds = assign_folds(self.rows.labels, self.rows.clusters, seed=self.seed)
            values = np.zeros((len(self.rows), len(self.targets)))
            for fold in range(FOLDS):
                outside = np.flatnonzero(folds != fold)
                model, _ = self._fit(outside, folds, stop=(fold + 1) % FOLDS, number=self.seeds + fold)
                members = np.flatnonzero(folds == fold)
                values[members] = self._values(model, members)
            self._held_out = dict(zip(self.targets, values.T, strict=True))
        return self._held_out

    def predict(self, rows: TrainingRows) -> dict[str, FloatArray]:
        """Return the values of heads without extra features for other rows, the largest of each row's windows."""
        windows = _windows(rows)
        none = torch.zeros(len(windows), 0)
        values = np.mean([_run(model, windows, none) for model in self._members], axis=0)
        return {
            name: over_rows(column, rows.pooled.windows) for name, column in zip(self.targets, values.T, strict=True)
        }

    def _fit(self, part: IntArray, folds: IntArray, *, stop: int, number: int) -> tuple[_Model, int]:
        segments = self._segments()
        seed = self.seed * 1000 + number
        component = Component(
            reduction=self.kind, outputs=cast("tuple[Output, ...]", tuple(self.targets)), heads=_HEADS
        )
        model = _Model(component, segments[0].shape[1], self.extras.shape[1], torch.Generator().manual_seed(seed))
        train, stopping = part[folds[part] != stop], part[folds[part] == stop]
        sample = np.random.default_rng(seed).permutation(train)[:_STANDARDISING_ROWS]
        standardise = Standardiser.fit(torch.cat([segments[row] for row in sample.tolist()]).double().numpy())
        model.mean.copy_(torch.from_numpy(standardise.mean))
        model.scale.copy_(torch.from_numpy(standardise.scale))
        extras = torch.from_numpy(self.extras).float()
        epoch = descend(
            model,
            segments,
            extras,
            self.targets,
            train=train,
            held_out=stopping,
            seed=seed,
            schedule=self.schedule,
        )
        return model, epoch

    def _segments(self) -> list[torch.Tensor]:
        """Return the tokens of each row's chosen window."""
        windows = _windows(self.rows)
        return [windows[window] for window in self.chosen.tolist()]

    def _values(self, model: _Model, members: IntArray) -> FloatArray:
        """Return a model's outputs for rows: of logistic heads the largest over windows, of others the chosen one."""
        part = self.rows.take(members)
        owner = part.pooled.row_of_window
        values = _run(model, _windows(part), torch.from_numpy(self.extras[members][owner]).float())
        first = np.cumsum(self.rows.pooled.windows) - self.rows.pooled.windows
        first_of_part = np.cumsum(part.pooled.windows) - part.pooled.windows
        chosen = values[first_of_part + self.chosen[members] - first[members]]
        for number, target in enumerate(self.targets.values()):
            if target.loss == "logistic":
                chosen[:, number] = over_rows(values[:, number], part.pooled.windows)
        return chosen


def fit_tokens(
    rows: TrainingRows,
    kind: Reduction,
    targets: Mapping[str, Target],
    extras: FloatArray,
    *,
    chosen: IntArray,
    seed: int,
    seeds: int = 1,
    schedule: Schedule = SCHEDULE,
) -> TokenFit:
    """Fit one component, or an ensemble of them, to all targets together.

    Args:
        rows: With token activations.
        kind: How tokens are reduced.
        targets: What each head is to say.
        extras: Numbers that these heads read beside activations, shape [rows, features].
        chosen: The window of each row that stands for it, shape [rows].
        seed: The same rows and seed give the same fit.
        seeds: Members of the ensemble.
        schedule: How long and how fast.

    Raises:
        DataError: There are too few clusters for cross-validation.
    """
    return TokenFit(rows, kind, targets, extras, chosen, seed, seeds, schedule)


def _windows(rows: TrainingRows) -> list[torch.Tensor]:
    """Return the token activations of every window."""
    return [window for row in rows.tokens or () for window in row.values.split(list(row.lengths))]


@torch.no_grad()
def _run(model: _Model, windows: Sequence[torch.Tensor], extras: torch.Tensor) -> FloatArray:
    everything = np.arange(len(windows))
    outputs = [model(tokens, extras[part]) for part, tokens in batches(windows, everything, _BATCH)]
    values: FloatArray = torch.cat(outputs).double().numpy()
    return values
