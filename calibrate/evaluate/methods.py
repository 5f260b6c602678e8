"""Who goes to the expert: every way of spending a budget, each as a mask over the test rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from calibrate.evaluate.rows import ScoredRows
from calibrate.evaluate.signals import uncertainty, uncertainty_rank
from ctd_guardrail.policy.budget import Certificate, Guarantee, certify, sort_scores
from ctd_guardrail.policy.guarantees import largest_count
from ctd_guardrail.policy.selection import Criterion, best_threshold
from ctd_guardrail.policy.store import CalibrationScores

__all__ = ["BATCHES", "CERTIFIED", "CHOSEN", "METHODS", "TOP_K", "Delegation", "Methods"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

METHODS: Final = ("probe", "expert", "random", "uncertainty", "ctd", "oracle")
"""Methods of the evaluation that every policy carries."""

CERTIFIED: Final = ("uncertainty", "uncertainty_rank", "ctd")
CHOSEN: Final = {
    f"ctd_{criterion.value}": criterion for criterion in (Criterion.AUROC, Criterion.ACCURACY, Criterion.BRIER)
}
BATCHES: Final = (32, 64, 128)
TOP_K: Final = {
    f"{signal}_top_{size}": (signal, size) for signal in ("uncertainty", "ctd", "oracle") for size in BATCHES
}


@dataclass(frozen=True, slots=True)
class Delegation:
    """The rows that one method sends to the expert at one budget.

    Attributes:
        rows: Which, shape [n].
        threshold: The certified threshold; None for methods without one, and where alpha cannot be certified.
        k: Number of calibration rows above the certificate's threshold; None likewise.
    """

    rows: BoolArray
    threshold: float | None = None
    k: int | None = None


class Methods:
    """All methods on the same rows, by name.

    - ``probe``, ``expert``: no row, every row.
    - ``random``: a random share alpha.
    - ``uncertainty``, ``uncertainty_rank``, ``ctd``: rows whose -|p - 1/2|, its median-rank form or d exceeds a
      threshold that is certified on the calibration rows for P(rate <= alpha) >= 1 - delta.
    - ``ctd_auroc``, ``ctd_accuracy``, ``ctd_brier``: as ``ctd``, at the certified threshold that does best by this
      criterion on the labelled calibration rows.
    - ``oracle``: the share alpha with the largest true v = (2y - 1)(m - p). It needs the answers: a bound, no method.
    - ``uncertainty_top_32``, ``ctd_top_64``, ``oracle_top_128`` and so on: rows arrive in batches of that size in
      random order, and the largest of each batch go. It needs a batch, and certifies nothing: in a batch that is
      all easy, as many go as in one that is all hard.

    ``random``, ``oracle`` and the top of batches spend alpha in full, up to whole rows; certified thresholds stay
    below it on average.

    Args:
        rows: Test rows.
        calibration: Scores of the calibration rows.
        delta: Error probability of each certificate.
        tau: Scores of at least tau block.
        seed: Of the random order of the rows.
        guarantee: What alpha bounds.
        traffic: Delegation values that certify d in place of the calibration rows', after a recalibration.
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
        traffic: FloatArray | None = None,
    ) -> None:
        n = rows.label.size
        self._rows, self._calibration, self._delta, self._tau = rows, calibration, delta, tau
        self._guarantee = guarantee
        self.signals: Mapping[str, FloatArray] = {
            "uncertainty": uncertainty(rows.p),
            "uncertainty_rank": uncertainty_rank(rows.p, calibration.p),
            "ctd": rows.d,
            "oracle": rows.value,
        }
        self.calibration_signals: Mapping[str, FloatArray] = {
            "uncertainty": sort_scores(uncertainty(calibration.p)),
            "uncertainty_rank": sort_scores(uncertainty_rank(calibration.p, calibration.p)),
            "ctd": sort_scores(calibration.d if traffic is None else traffic),
        }
        self._shuffled = np.random.default_rng(seed).permutation(n)
        self._ranks: dict[tuple[str, int], NDArray[np.int64]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every method that these rows allow; a choice by a criterion takes labelled calibration rows of both kinds."""
        held = self._calibration.scored
        has_choice = held.expert is not None and held.label is not None and np.unique(held.label).size > 1
        return (*METHODS[:4], "uncertainty_rank", "ctd", *(CHOSEN if has_choice else ()), "oracle", *TOP_K)

    def delegate(self, method: str, alpha: float) -> Delegation:
        """Return the rows that a method sends to the expert.

        Raises:
            KeyError: There is no such method.
            ConfigError: alpha or delta lies outside (0, 1).
        """
        n = self._rows.label.size
        if method in CERTIFIED:
            return self._certified(method, alpha)
        if method in CHOSEN:
            return self._chosen(CHOSEN[method], alpha)
        if method in TOP_K:
            return Delegation(self._top(*TOP_K[method], alpha))
        fixed: Mapping[str, Callable[[], BoolArray]] = {
            "probe": lambda: np.zeros(n, dtype=np.bool_),
            "expert": lambda: np.ones(n, dtype=np.bool_),
            "random": lambda: _members(self._shuffled[: largest_count(n, alpha)], n),
            "oracle": lambda: self.top("oracle", largest_count(n, alpha)),
        }
        return Delegation(fixed[method]())

    def top(self, signal: str, count: int) -> BoolArray:
        """Return the rows with the largest values of a signal, shape [n]."""
        return _members(np.argsort(-self.signals[signal], kind="stable")[:count], self._rows.label.size)

    def _certify(self, signal: str, alpha: float) -> Certificate:
        return certify(self.calibration_signals[signal], alpha, self._delta, guarantee=self._guarantee)

    def _certified(self, signal: str, alpha: float) -> Delegation:
        certificate = self._certify(signal, alpha)
        above = self.signals[signal] > certificate.threshold
        return Delegation(above, certificate.threshold, certificate.k) if certificate.k >= 0 else Delegation(above)

    def _chosen(self, criterion: Criterion, alpha: float) -> Delegation:
        certificate, held = self._certify("ctd", alpha), self._calibration.scored
        if certificate.k < 0 or held.expert is None or held.label is None:
            return Delegation(np.zeros(self._rows.label.size, dtype=np.bool_))
        choice = best_threshold(
            certificate,
            criterion,
            d=held.d,
            probe=held.p,
            expert=self._rows.merge(held.p, held.expert),
            label=held.label,
            tau=self._tau,
        )
        return Delegation(self._rows.d > choice.threshold, choice.threshold, choice.exceedances)

    def _top(self, signal: str, size: int, alpha: float) -> BoolArray:
        """Return the top of each batch; the last batch may be smaller."""
        n = self._rows.label.size
        if (signal, size) not in self._ranks:
            self._ranks[signal, size] = _rank_in_batch(self.signals[signal], self._batches(size))
        allowed = np.full(n, largest_count(size, alpha))
        allowed[self._shuffled[n - n % size :]] = largest_count(n % size, alpha)
        chosen: BoolArray = self._ranks[signal, size] < allowed
        return chosen

    def _batches(self, size: int) -> Iterable[NDArray[np.intp]]:
        return (self._shuffled[start : start + size] for start in range(0, self._shuffled.size, size))


def _rank_in_batch(signal: FloatArray, batches: Iterable[NDArray[np.intp]]) -> NDArray[np.int64]:
    """Return the number of rows of the same batch that go before each row, shape [n]."""
    rank = np.empty(signal.size, dtype=np.int64)
    for batch in batches:
        rank[batch[np.argsort(-signal[batch], kind="stable")]] = np.arange(batch.size)
    return rank


def _members(indices: NDArray[np.intp], n: int) -> BoolArray:
    chosen = np.zeros(n, dtype=np.bool_)
    chosen[indices] = True
    return chosen
