"""The paper's other ways of spending a budget: uncertainty by rank, and the top of each batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from calibrate.evaluate.methods import Delegation, Methods
from calibrate.evaluate.rows import ScoredRows
from ctd_guardrail._typing import BoolArray, FloatArray, IndexArray, IntArray
from ctd_guardrail.policy.budget import Guarantee
from ctd_guardrail.policy.guarantees import largest_count
from ctd_guardrail.policy.store import CalibrationScores
from ctd_guardrail.policy.turns import TurnScores

__all__ = ["BATCHES", "RANK", "TOP_K", "PaperMethods", "uncertainty_rank"]


RANK: Final = "uncertainty_rank"
BATCHES: Final = (32, 64, 128)
"""Sizes of the batches."""
TOP_K: Final = {
    f"{signal}_top_{size}": (signal, size) for signal in ("uncertainty", "ctd", "oracle") for size in BATCHES
}


class PaperMethods(Methods):
    """The methods of this package, and two kinds that the paper compares with.

    - ``uncertainty_rank``: like ``uncertainty``, by the distance of p's rank from the median rank.
    - ``uncertainty_top_32``, ``ctd_top_64``, ``oracle_top_128`` and so on: rows arrive in batches of that size in
      random order, and the top share alpha of each batch goes to the expert. This certifies nothing: an easy batch
      sends as many rows as a hard one.

    Args:
        rows: Test rows.
        calibration: Scores of the calibration rows.
        delta: Error probability of each certificate.
        tau: A score of at least tau blocks.
        seed: Seed of the random order of the rows.
        guarantee: What alpha bounds.
        turns: Delegation values that certify d instead of the calibration rows'.
    """

    def __init__(
        self,
        rows: ScoredRows,
        calibration: CalibrationScores,
        *,
        delta: float,
        tau: float = 0.5,
        seed: int = 0,
        guarantee: Guarantee = Guarantee.EXACT,
        turns: TurnScores | None = None,
    ) -> None:
        super().__init__(rows, calibration, delta=delta, tau=tau, seed=seed, guarantee=guarantee, turns=turns)
        ranks = TurnScores.of(uncertainty_rank(calibration.p, calibration.p))
        self.signals = {**self.signals, RANK: uncertainty_rank(rows.p, calibration.p)}
        self.calibration_signals = {**self.calibration_signals, RANK: ranks}
        self._ranks: dict[str, IntArray] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every method of these rows."""
        return (*super().names, RANK, *TOP_K)

    def delegate(self, method: str, alpha: float) -> Delegation:
        """Return the rows that a method sends to the expert.

        Raises:
            KeyError: There is no such method.
            ConfigError: alpha or delta lies outside (0, 1).
        """
        if method == RANK:
            return self._delegate_above(self.signals[RANK], self.certify(RANK, alpha))
        return Delegation(self._top_of_batches(method, alpha)) if method in TOP_K else super().delegate(method, alpha)

    def _top_of_batches(self, method: str, alpha: float) -> BoolArray:
        """Return the top of each batch; the last batch may be smaller."""
        signal, size = TOP_K[method]
        n = self._shuffled.size
        if method not in self._ranks:
            batches = (self._shuffled[start : start + size] for start in range(0, n, size))
            self._ranks[method] = _rank_in_batch(self.signals[signal], batches)
        allowed = np.full(n, largest_count(size, alpha))
        allowed[self._shuffled[n - n % size :]] = largest_count(n % size, alpha)
        chosen: BoolArray = self._ranks[method] < allowed
        return chosen


def uncertainty_rank(p: FloatArray, reference: FloatArray) -> FloatArray:
    """Return minus the distance of p's rank from the median rank, the uncertainty of arXiv 2604.14251.

    Unlike |p - 1/2| it finds the undecided middle of a probe whose scores all lie on one side of 1/2.

    Args:
        p: Scores, shape [n].
        reference: The calibration rows' scores, which give the ranks, shape [m]. A row's signal therefore does not
            depend on the other rows that are evaluated.

    Returns:
        -|F(p) - 1/2|, F the share of reference scores below p, ties counted half; shape [n].
    """
    ordered = np.sort(reference)
    below, up_to = (np.searchsorted(ordered, p, side=side) for side in ("left", "right"))
    return -np.abs((below + up_to) / (2.0 * ordered.size) - 0.5)


def _rank_in_batch(signal: FloatArray, batches: Iterable[IndexArray]) -> IntArray:
    """Return the number of rows of the same batch that go before each row, shape [n]."""
    rank = np.empty(signal.size, dtype=np.int64)
    for batch in batches:
        rank[batch[np.argsort(-signal[batch], kind="stable")]] = np.arange(batch.size)
    return rank
