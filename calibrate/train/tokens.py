"""Probes that read every token, trained by gradient descent on the reductions that the rail runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np
import torch

from calibrate.train.crossfit import FOLDS, assign_folds
from calibrate.train.descent import SCHEDULE, Schedule, batches, descend
from calibrate.train.parts import Part
from calibrate.train.rows import TrainingRows, over_rows
from calibrate.train.standardise import Standardiser
from calibrate.train.targets import Target
from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.probes import reductions
from ctd_guardrail.probes.ragged import Ragged
from ctd_guardrail.probes.segments import Segments
from ctd_guardrail.probes.spec import Component, Output, Reduction

__all__ = ["TokenFit", "fit_tokens"]


# Heads of each attention and multimax probe.
_HEADS: Final = 8
_BATCH: Final = 256
# Rows whose tokens give mean and scale of the activations: enough for both, and they fit into memory in float64.
_STANDARDISING_ROWS: Final = 500


class _Model(torch.nn.Module):
    """One component on standardised tokens, with biases."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, component: Component, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.component = component
        self.own = torch.nn.ParameterDict(
            {
                name: torch.randn(shape, generator=generator) / (10.0 * width**0.5)
                for name, shape in component.shapes(width).items()
            }
        )
        self.bias = torch.nn.Parameter(torch.zeros(len(component.outputs)))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, tokens: Ragged) -> torch.Tensor:
        tensors = {name: cast("torch.Tensor", tensor) for name, tensor in self.own.items()}
        columns = ((tokens.values - self.mean) / self.scale) @ reductions.matrix(self.component, tensors).T
        segments = Segments.of(tokens.lengths, columns.device)
        return reductions.reduce(self.component, columns, segments) + self.bias

    def part(self) -> Part:
        """Return the trained component on raw activations.

        z = (x - mean) / scale shifts every column by a constant. A softmax does not depend on the shift of its
        queries. The shift of a value goes into the bias.
        """
        mean, scale = (tensor.double().numpy() for tensor in (self.mean, self.scale))
        raw = {name: tensor.detach().double().numpy() / scale for name, tensor in self.own.items()}
        bias = self.bias.detach().double().numpy().copy()
        for name, tensor in raw.items():
            if name != "query":
                bias -= (tensor @ mean).reshape(bias.size, -1).sum(axis=1)
        return Part(self.component, raw, bias)


@dataclass(slots=True)
class TokenFit:
    """Heads of one kind, trained together, and their held-out values.

    Attributes:
        rows: The training rows.
        kind: Reduction of the tokens.
        targets: Target of each head.
        chosen: The window of each row that the heads learn from, shape [rows].
        seed: Seed of folds, initial weights and orders.
        schedule: Length and rate of the descent.
    """

    rows: TrainingRows
    kind: Reduction
    targets: Mapping[str, Target]
    chosen: IntArray
    seed: int
    schedule: Schedule
    _model: _Model = field(init=False)
    _epochs: int = field(init=False)
    _held_out: dict[str, FloatArray] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Train on all rows but one fold, which decides when to stop."""
        self._model, self._epochs = self._fit(np.arange(len(self.rows)), self._folds(), stop=0, number=0)

    def parts(self) -> list[Part]:
        """Return the trained component."""
        return [self._model.part()]

    def record(self) -> dict[str, Any]:
        """Return kind, rows and epochs, as JSON."""
        return {"kind": self.kind, "rows": len(self.rows), "epochs": self._epochs}

    def held_out(self) -> dict[str, FloatArray]:
        """Return the value of each head for every row, from fits that saw neither it nor its cluster.

        The first call trains five more fits.
        """
        if self._held_out is None:
            folds = self._folds()
            values = np.zeros((len(self.rows), len(self.targets)))
            for fold in range(FOLDS):
                outside = np.flatnonzero(folds != fold)
                model, _ = self._fit(outside, folds, stop=(fold + 1) % FOLDS, number=1 + fold)
                members = np.flatnonzero(folds == fold)
                values[members] = self._values(model, members)
            self._held_out = dict(zip(self.targets, values.T, strict=True))
        return self._held_out

    def predict(self, rows: TrainingRows) -> dict[str, FloatArray]:
        """Return the value of each head for other rows: the largest over the windows of a row."""
        values = _run(self._model, _windows(rows))
        return {
            name: over_rows(column, rows.pooled.windows) for name, column in zip(self.targets, values.T, strict=True)
        }

    def _folds(self) -> IntArray:
        return assign_folds(self.rows.labels, self.rows.clusters, seed=self.seed)

    def _fit(self, part: IntArray, folds: IntArray, *, stop: int, number: int) -> tuple[_Model, int]:
        segments = self._segments()
        seed = self.seed * 1000 + number
        component = Component(
            reduction=self.kind, outputs=cast("tuple[Output, ...]", tuple(self.targets)), heads=_HEADS
        )
        model = _Model(component, segments[0].shape[1], torch.Generator().manual_seed(seed))
        train, stopping = part[folds[part] != stop], part[folds[part] == stop]
        sample = np.random.default_rng(seed).permutation(train)[:_STANDARDISING_ROWS]
        standardise = Standardiser.fit(torch.cat([segments[row] for row in sample.tolist()]).double().numpy())
        model.mean.copy_(torch.from_numpy(standardise.mean))
        model.scale.copy_(torch.from_numpy(standardise.scale))
        epoch = descend(
            model, segments, self.targets, train=train, held_out=stopping, seed=seed, schedule=self.schedule
        )
        return model, epoch

    def _segments(self) -> list[torch.Tensor]:
        """Return the tokens of each row's chosen window."""
        windows = _windows(self.rows)
        return [windows[window] for window in self.chosen.tolist()]

    def _values(self, model: _Model, members: IntArray) -> FloatArray:
        """Return a model's outputs for rows: of logistic heads the largest over windows, of others the chosen one."""
        part = self.rows.take(members)
        values = _run(model, _windows(part))
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
    *,
    chosen: IntArray,
    seed: int,
    schedule: Schedule = SCHEDULE,
) -> TokenFit:
    """Fit one component to all targets together.

    Args:
        rows: Training rows with token activations.
        kind: Reduction of the tokens.
        targets: Target of each head.
        chosen: The window of each row that the heads learn from, shape [rows].
        seed: The same rows and seed give the same fit.
        schedule: Length and rate of the descent.

    Raises:
        DataError: There are too few clusters for cross-validation.
    """
    return TokenFit(rows, kind, targets, chosen, seed, schedule)


def _windows(rows: TrainingRows) -> list[torch.Tensor]:
    """Return the token activations of every window."""
    return [window for row in rows.tokens or () for window in row.values.split(list(row.lengths))]


@torch.no_grad()
def _run(model: _Model, windows: Sequence[torch.Tensor]) -> FloatArray:
    outputs = [model(tokens) for _, tokens in batches(windows, np.arange(len(windows)), _BATCH)]
    values: FloatArray = torch.cat(outputs).double().numpy()
    return values
