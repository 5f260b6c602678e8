"""From a budget alpha to the delegation threshold lambda, with a certificate.

Let d_1..d_n be the delegation values of n calibration inputs, exchangeable with the inputs of the deployment, and
R(lambda) = P(d > lambda) the share of inputs that the rule ``delegate iff d > lambda`` (strict) sends to the expert.
With the threshold of :func:`certify`, P(R(lambda) <= alpha) >= 1 - delta over the draw of the calibration inputs;
:mod:`ctd_guardrail.policy.guarantees` lists the other guarantees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from typing import Final, assert_never

import numpy as np

from ctd_guardrail._typing import FloatArray
from ctd_guardrail.errors import ConfigError, DataError, InfeasibleBudgetError
from ctd_guardrail.policy.envelope import Simultaneous
from ctd_guardrail.policy.guarantees import (
    Exact,
    Expected,
    Guarantee,
    NextRequests,
    Rule,
    check_share,
    max_exceedances,
    min_alpha,
    min_rows,
)

__all__ = [
    "Certificate",
    "Guarantee",
    "Status",
    "certify",
    "infeasible",
    "max_exceedances",
    "min_alpha",
    "min_rows",
    "round_up",
    "sort_scores",
]

_DECIMALS: Final = 4
_SIGNIFICANT_DIGITS: Final = 3


class Status(StrEnum):
    """Whether the scores can certify the budget."""

    CERTIFIED = "certified"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, slots=True)
class Certificate:
    """A threshold and the guarantee on the rate at which it delegates.

    Attributes:
        status: Whether the budget is certified.
        threshold: lambda; ``+inf`` if infeasible: nothing is delegated.
        k: Number of calibration scores that may lie above the threshold, k*; -1 if infeasible.
        n: Number of calibration scores.
        alpha: The budget: largest admissible share of delegated inputs.
        delta: Admissible probability, over the calibration draw, that the guarantee fails; ``expected`` has none and
            ignores it.
        mean_rate: Expected share of delegated inputs, (k + 1) / (n + 1), exact for continuous scores; 0 if
            infeasible.
        n_min: Smallest n that can certify alpha at delta. A certified ``simultaneous`` states the n that is enough
            at its own eta, an upper bound that needs no search.
        alpha_min: Smallest alpha that n scores can certify at delta.
        guarantee: The meaning of alpha.
        horizon: The number of inputs of ``next``; None for the others.
    """

    status: Status
    threshold: float
    k: int
    n: int
    alpha: float
    delta: float
    mean_rate: float
    n_min: int
    alpha_min: float
    guarantee: Guarantee = Guarantee.EXACT
    horizon: int | None = None


def sort_scores(scores: FloatArray) -> FloatArray:
    """Return the scores in ascending order.

    Raises:
        DataError: There are none, or one is NaN or infinite. The error names its row.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1:
        raise DataError(
            f"delegation values form an array of shape {scores.shape}, not one column",
            hint="Give one number for each input",
        )
    if scores.size == 0:
        raise DataError("there are no delegation values", hint="A budget needs calibration rows")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise DataError(
            f"delegation value is {scores[bad[0]]}",
            row=int(bad[0]) + 1,
            hint="Delegation values must be finite numbers",
        )
    return np.sort(scores)


def certify(
    sorted_scores: FloatArray,
    alpha: float,
    delta: float,
    *,
    guarantee: Guarantee = Guarantee.EXACT,
    horizon: int | None = None,
) -> Certificate:
    """Return the smallest threshold whose delegation rate is certified to be at most alpha.

    lambda is the (n - k)-th smallest score. Without ties, exactly k scores lie above it; with ties, fewer. Every larger
    threshold is certified by the same event, so choosing among those needs no correction.

    Args:
        sorted_scores: Delegation values of the calibration inputs in ascending order, as :func:`sort_scores` returns
            them, shape [n].
        alpha: Budget in (0, 1).
        delta: Error probability in (0, 1).
        guarantee: The meaning of alpha.
        horizon: For ``next``, the number of inputs that the statement covers.

    Raises:
        ConfigError: alpha or delta lies outside (0, 1), alpha outside the range of ``simultaneous``, or ``horizon``
            and ``guarantee`` do not belong together.
    """
    check_share("delta", delta)
    rule = _rule(guarantee, delta, horizon)
    n = int(sorted_scores.size)
    k = rule.exceedances(n, alpha)
    feasible = k >= 0
    return Certificate(
        status=Status.CERTIFIED if feasible else Status.INFEASIBLE,
        threshold=float(sorted_scores[n - 1 - k]) if feasible else math.inf,
        k=k,
        n=n,
        alpha=alpha,
        delta=delta,
        mean_rate=(k + 1) / (n + 1) if feasible else 0.0,
        n_min=rule.rows(n, alpha),
        alpha_min=rule.budget(n),
        guarantee=guarantee,
        horizon=horizon,
    )


def infeasible(certificate: Certificate, *, key: str, audit_share: float = 0.0) -> InfeasibleBudgetError:
    """Return the error of a budget that the calibration rows cannot certify.

    Args:
        certificate: The certificate; it is infeasible.
        key: Dotted path of alpha in the operator's file.
        audit_share: Share of the inputs that is paid out of alpha before the certificate's own alpha.
    """
    asked = f"alpha = {certificate.alpha:.6g}"
    needed = f"{asked} takes {certificate.n_min} rows"
    smallest = round_up(audit_share + (1.0 - audit_share) * certificate.alpha_min)
    hint = f"The smallest alpha that they can certify is {smallest:f}; {needed}"
    return InfeasibleBudgetError(
        f"{key}: {certificate.n} calibration rows cannot certify {asked} at delta = {certificate.delta:.6g}",
        alpha=certificate.alpha,
        alpha_min=certificate.alpha_min,
        n_min=certificate.n_min,
        hint=hint if smallest < 1 else f"They can certify no useful alpha; {needed}",
    )


def round_up(alpha: float) -> Decimal:
    """Return an alpha with the digits that messages show. It is rounded up, so what ``alpha`` allows it allows too."""
    exact = Decimal(alpha)
    return exact.quantize(Decimal(1).scaleb(min(-_DECIMALS, exact.adjusted() + 1 - _SIGNIFICANT_DIGITS)), ROUND_CEILING)


def _rule(guarantee: Guarantee, delta: float, horizon: int | None) -> Rule:
    if guarantee is Guarantee.NEXT:
        if horizon is None or horizon < 1:
            raise ConfigError(
                f"guarantee 'next' covers the next T inputs, but T is {horizon}",
                key="horizon",
                hint="Set horizon to a number of inputs, for example 1000",
            )
        return NextRequests(delta, horizon)
    if horizon is not None:
        raise ConfigError(
            f"guarantee {guarantee.value!r} has no horizon", key="horizon", hint="Leave it out, or use guarantee: next"
        )
    match guarantee:
        case Guarantee.SIMULTANEOUS:
            return Simultaneous(delta)
        case Guarantee.EXPECTED:
            return Expected()
        case Guarantee.EXACT:
            return Exact(delta)
        case _:
            assert_never(guarantee)
