"""Gradient descent for probes that read all tokens: AdamW, a cosine schedule, and a stop on held-out clusters.

The defaults follow the literature on attention probes. The learning rate falls from 5e-3 to 5e-4, and the weight decay
is 1e-3. A batch has 128 rows. Training takes at most 200 epochs, and stops after 50 epochs without progress.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from calibrate.train.targets import Target
from ctd_guardrail._typing import IntArray
from ctd_guardrail.probes.ragged import Ragged

__all__ = ["SCHEDULE", "Schedule", "batches", "descend"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length and rate of a descent.

    Attributes:
        epochs: Largest number of passes over the rows.
        patience: Epochs without a better loss on the held-out rows after which the descent stops.
        rate: Learning rate at the start.
        last_rate: Learning rate after the last epoch.
        decay: Weight decay.
        batch: Rows of a step.
    """

    epochs: int = 200
    patience: int = 50
    rate: float = 5e-3
    last_rate: float = 5e-4
    decay: float = 1e-3
    batch: int = 128


SCHEDULE: Final = Schedule()


def batches(segments: Sequence[torch.Tensor], rows: IntArray, size: int) -> Iterator[tuple[IntArray, Ragged]]:
    """Yield rows with their token activations, in float32 and in this order.

    Args:
        segments: Token activations of each row's window, shape [tokens, width].
        rows: Indices of the rows.
        size: Rows of one batch.
    """
    for start in range(0, rows.size, size):
        part = rows[start : start + size]
        chosen = [segments[row] for row in part.tolist()]
        yield part, Ragged(torch.cat(chosen).float(), tuple(len(segment) for segment in chosen))


def descend(
    model: torch.nn.Module,
    segments: Sequence[torch.Tensor],
    targets: Mapping[str, Target],
    *,
    train: IntArray,
    held_out: IntArray,
    seed: int,
    schedule: Schedule = SCHEDULE,
) -> int:
    """Fit a model in place, restore its best epoch, and return that epoch's number, from 1.

    Args:
        model: Maps ragged tokens to outputs, shape [rows, targets].
        segments: Token activations of each row's window.
        targets: Target of each output, in the order of the outputs.
        train: Rows to fit to.
        held_out: Rows of other clusters that decide when to stop.
        seed: Seed of the order of the rows.
        schedule: Length and rate.
    """
    loss_of = _loss(targets, train)
    optimiser = torch.optim.AdamW(model.parameters(), lr=schedule.rate, weight_decay=schedule.decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, schedule.epochs, eta_min=schedule.last_rate)
    rng = np.random.default_rng(seed)
    best, best_epoch, best_state = np.inf, 0, copy.deepcopy(model.state_dict())
    for epoch in range(1, schedule.epochs + 1):
        for rows, tokens in batches(segments, rng.permutation(train), schedule.batch):
            optimiser.zero_grad()
            loss_of(model(tokens), rows).backward()
            optimiser.step()
        cosine.step()
        with torch.no_grad():
            parts = [
                (loss_of(model(tokens), rows).item(), rows.size)
                for rows, tokens in batches(segments, held_out, schedule.batch)
            ]
        loss = sum(value * size for value, size in parts) / held_out.size
        if loss < best:
            best, best_epoch, best_state = loss, epoch, copy.deepcopy(model.state_dict())
        elif epoch - best_epoch >= schedule.patience:
            break
    model.load_state_dict(best_state)
    return best_epoch


def _loss(targets: Mapping[str, Target], train: IntArray) -> Callable[[torch.Tensor, IntArray], torch.Tensor]:
    """Return the sum over the targets of their weighted mean losses, squared errors in units of the variance."""
    kinds = [target.loss for target in targets.values()]
    values = torch.tensor(np.stack([target.values for target in targets.values()], axis=1), dtype=torch.float32)
    weights = torch.tensor(np.stack([target.weights for target in targets.values()], axis=1), dtype=torch.float32)
    scales = []
    for number, target in enumerate(targets.values()):
        rows = train[target.weights[train] > 0.0]
        variance = float(np.var(target.values[rows])) if target.loss == "squared" else 1.0
        # A batch also holds rows of weight 0. Scaled weights turn its mean into the mean over the other rows.
        scales.append(1.0 / max(variance, 1e-6))
        weights[:, number] /= weights[train, number].mean()

    def loss(outputs: torch.Tensor, rows: IntArray) -> torch.Tensor:
        total = outputs.new_zeros(())
        for number, kind in enumerate(kinds):
            output, value = outputs[:, number], values[rows, number]
            if kind == "logistic":
                each = torch.nn.functional.binary_cross_entropy_with_logits(output, value, reduction="none")
            else:
                each = (output - value).square() * scales[number]
            total = total + (weights[rows, number] * each).mean()
        return total

    return loss
