"""Methods of spending a budget: which rows go to the expert, as a mask over the test rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from calibrate.evaluate.rows import ScoredRows
from ctd_guardrail._typing import BoolArray, FloatArray, IndexArray
from ctd_guardrail.policy.budget import Certificate, Guarantee, certify
from ctd_guardrail.policy.guarantees import largest_count
from ctd_guardrail.policy.selection import Criterion, best_threshold
from ctd_guardrail.policy.store import CalibrationScores
from ctd_guardrail.policy.turns import TurnScores

__all__ = ["CERTIFIED", "CHOSEN", "METHODS", "Delegation", "Methods", "select_rows", "uncertainty"]


METHODS: Final = ("probe", "expert", "random", "uncertainty", "ctd", "oracle")
"""Methods of the record in every policy."""
CERTIFIED: Final = ("uncertainty", "ctd")
"""Methods with a certified threshold on a signal of the same name."""
CHOSEN: Final = {
    f"ctd_{criterion.value}": criterion for criterion in (Criterion.AUROC, Criterion.ACCURACY, Criterion.BRIER)
}
"""Methods with the certified threshold on d that is best by a criterion."""


@dataclass(frozen=True, slots=True)
class Delegation:
    """The rows that one method sends to the expert at one budget.

    Attributes:
        rows: Mask of the rows, shape [n].
        threshold: The certified threshold; None if the method has none or alpha cannot be certified.
        k: Number of calibration rows above the certificate's threshold; None if there is no threshold.
    """

    rows: BoolArray
    threshold: float | None = None
    k: int | None = None


class Methods:
    """Every method on the same rows, by name.

    - ``probe``, ``expert``: no row, every row.
    - ``random``: a random share alpha.
    - ``uncertainty``, ``ctd``: rows whose -|p - 1/2| or d exceeds a threshold that the calibration rows certify for
      P(rate <= alpha) >= 1 - delta.
    - ``ctd_auroc``, ``ctd_accuracy``, ``ctd_brier``: like ``ctd``, at the certified threshold that is best by this
      criterion on the labelled calibration rows.
    - ``oracle``: the share alpha with the largest true v = (2y - 1)(m - p). It needs the labels, so it is a bound.

    ``random`` and ``oracle`` spend all of alpha, up to whole rows. Certified thresholds stay below it on average.

    Args:
        rows: Test rows.
        calibration: Scores of the calibration rows.
        delta: Error probability of each certificate.
        tau: A score of at least tau blocks.
        seed: Seed of the random order of the rows.
        guarantee: What alpha bounds.
        turns: Delegation values that certify d instead of the calibration rows'.
        max_turns: Largest number of turns of a conversation in the deployment; None: that of the data.

    Attributes:
        signals: Values of the test rows by which each signal ranks them.
        calibration_signals: Values behind each certificate.
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
        max_turns: int | None = None,
    ) -> None:
        self._rows, self._calibration, self._delta, self._tau = rows, calibration, delta, tau
        self._guarantee = guarantee
        self.signals: Mapping[str, FloatArray] = {
            "uncertainty": uncertainty(rows.p),
            "ctd": rows.d,
            "oracle": rows.value,
        }
        self._max_turns = max_turns
        self.calibration_signals: Mapping[str, TurnScores] = {
            "uncertainty": TurnScores.of(uncertainty(calibration.p)),
            "ctd": TurnScores.of(calibration.d) if turns is None else turns,
        }
        self._shuffled = np.random.default_rng(seed).permutation(rows.label.size)

    @property
    def names(self) -> tuple[str, ...]:
        """Every method of these rows. A choice by a criterion needs calibration rows of both labels."""
        held = self._calibration.scored
        has_choice = held.expert is not None and held.label is not None and np.unique(held.label).size > 1
        return (*METHODS[:-1], *(CHOSEN if has_choice else ()), METHODS[-1])

    def delegate(self, method: str, alpha: float) -> Delegation:
        """Return the rows that a method sends to the expert.

        Raises:
            KeyError: There is no such method.
            ConfigError: alpha or delta lies outside (0, 1), or alpha outside the range of the guarantee.
        """
        n = self._rows.label.size
        if method in CERTIFIED:
            return self._delegate_above(self.signals[method], self.certify(method, alpha))
        if method in CHOSEN:
            return self._delegate_best(CHOSEN[method], alpha)
        fixed: Mapping[str, Callable[[], BoolArray]] = {
            "probe": lambda: np.zeros(n, dtype=np.bool_),
            "expert": lambda: np.ones(n, dtype=np.bool_),
            "random": lambda: select_rows(self._shuffled[: largest_count(n, alpha)], n),
            "oracle": lambda: self.top("oracle", largest_count(n, alpha)),
        }
        return Delegation(fixed[method]())

    def certify(self, signal: str, alpha: float) -> Certificate:
        """Return the certificate of a signal at a budget.

        Raises:
            KeyError: Thresholds on this signal cannot be certified.
            ConfigError: alpha or delta lies outside (0, 1), or alpha outside the range of the guarantee.
        """
        turns, of_d = self.calibration_signals[signal], signal == "ctd"
        return certify(
            turns,
            alpha,
            self._delta,
            guarantee=self._guarantee,
            max_turns=self._max_turns if of_d else None,
        )

    def top(self, signal: str, count: int) -> BoolArray:
        """Return the rows with the largest values of a signal, shape [n]."""
        return select_rows(np.argsort(-self.signals[signal], kind="stable")[:count], self._rows.label.size)

    @staticmethod
    def _delegate_above(signal: FloatArray, certificate: Certificate) -> Delegation:
        above = signal > certificate.threshold
        return Delegation(above, certificate.threshold, certificate.k) if certificate.k >= 0 else Delegation(above)

    def _delegate_best(self, criterion: Criterion, alpha: float) -> Delegation:
        certificate, held = self.certify("ctd", alpha), self._calibration.scored
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


def uncertainty(p: FloatArray) -> FloatArray:
    """Return -|p - 1/2|, the signal of uncertainty: the larger, the less sure is the probe. Shape [n]."""
    return -np.abs(p - 0.5)


def select_rows(indices: IndexArray, n: int) -> BoolArray:
    """Return the mask of some of n rows, shape [n]."""
    chosen = np.zeros(n, dtype=np.bool_)
    chosen[indices] = True
    return chosen
