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
from ctd_guardrail.policy.methods import Method, by_betting, by_closed_form, by_conformal_control, by_thinning
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores

__all__ = [
    "BudgetUnit",
    "Certificate",
    "Guarantee",
    "Method",
    "Status",
    "TurnScores",
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
        k: Number of scores above the threshold; with one turn in each conversation, the number k* that may lie above
            it. -1 if infeasible.
        n: Number of independent units behind the certificate: conversations.
        alpha: The budget: largest admissible share of delegated inputs.
        delta: Admissible probability, over the calibration draw, that the guarantee fails; ``expected`` has none and
            ignores it.
        mean_rate: Expected share of delegated turns, or number of calls per conversation, as ``unit`` says. With one
            turn in each conversation it is (k + 1) / (n + 1), exact for continuous scores; else the rate on the data.
            0 if infeasible.
        n_min: Smallest n that can certify alpha at delta. A certified ``simultaneous`` states the n that is enough
            at its own eta, an upper bound that needs no search.
        alpha_min: Smallest alpha that these scores can certify at delta.
        guarantee: The meaning of alpha.
        horizon: The number of inputs of ``next``; None for the others.
        unit: What alpha is a share or a number of.
        conversations: Number of conversations.
        turns: Number of their turns.
        method: How the threshold was found.
        max_turns: Largest number of turns of a conversation in the deployment. The certificate assumes it.
        always: Number of turns that go to the expert whatever the threshold, as unreadable ones do.
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
    unit: BudgetUnit = BudgetUnit.TURN
    conversations: int = 1
    turns: int = 1
    method: Method = Method.EXACT_BINOMIAL
    max_turns: int = 1
    always: int = 0


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
    scores: FloatArray | TurnScores,
    alpha: float,
    delta: float,
    *,
    unit: BudgetUnit = BudgetUnit.TURN,
    guarantee: Guarantee = Guarantee.EXACT,
    horizon: int | None = None,
    max_turns: int | None = None,
    first_look: int | None = None,
) -> Certificate:
    """Return the smallest threshold whose delegation rate is certified to be at most alpha.

    With one turn in each conversation, lambda is the (n - k)-th smallest score. Without ties, exactly k scores lie
    above it; with ties, fewer. Every larger threshold is certified by the same event, so choosing among those needs no
    correction.

    Args:
        scores: The turns, or delegation values of single turns in ascending order, as :func:`sort_scores` returns
            them, shape [n].
        alpha: Budget: a share in (0, 1), or a number of calls per conversation in (0, max_turns).
        delta: Error probability in (0, 1).
        unit: What alpha is a share or a number of.
        guarantee: The meaning of alpha.
        horizon: For ``next``, the number of inputs that the statement covers.
        max_turns: Largest number of turns of a conversation in the deployment; None: that of the data.
        first_look: For conversations that grow and are certified again and again at the same delta: their number when
            they were first certified. None for data that do not grow.

    Raises:
        ConfigError: alpha or delta lies outside its range, ``max_turns`` is below the longest conversation of the
            data, or unit, guarantee, horizon and data do not belong together.
    """
    check_share("delta", delta)
    if not isinstance(scores, TurnScores):
        scores = TurnScores(scores)
    rule = _rule(guarantee, delta, horizon)
    longest = _longest(scores, max_turns)
    _check_alpha(alpha, unit, longest)
    if longest == 1 and first_look is None:
        # Calls per turn are calls per conversation.
        found = by_closed_form(scores, rule, alpha)
    elif guarantee is Guarantee.EXACT:
        found = by_betting(scores, alpha, delta, unit=unit, max_turns=longest, first_look=first_look)
    elif first_look is not None:
        raise ConfigError(
            f"scores that grow can be certified under guarantee 'exact', not under {guarantee.value!r}",
            key="guarantee",
            hint="Use guarantee: exact, or recalibrate without --growing",
        )
    elif guarantee is Guarantee.EXPECTED:
        found = by_conformal_control(scores, alpha, unit=unit, max_turns=longest)
    elif guarantee is Guarantee.NEXT:
        raise ConfigError(
            f"guarantee 'next' counts independent turns, but conversations have up to {longest} turns",
            key="guarantee",
            hint="Use guarantee: exact, or expected",
        )
    elif unit is BudgetUnit.CONVERSATION:
        raise ConfigError(
            "guarantee 'simultaneous' bounds calls per turn, not calls per conversation",
            key="guarantee",
            hint="Use guarantee: exact, or unit: turn",
        )
    else:
        found = by_thinning(scores, rule, alpha, longest)
    feasible = math.isfinite(found.threshold)
    units = scores.turns if unit is BudgetUnit.TURN else scores.conversations
    mean_rate = found.k / units if found.mean_rate is None else found.mean_rate
    return Certificate(
        status=Status.CERTIFIED if feasible else Status.INFEASIBLE,
        threshold=found.threshold,
        k=found.k if feasible else -1,
        n=scores.conversations,
        alpha=alpha,
        delta=delta,
        mean_rate=mean_rate if feasible else 0.0,
        n_min=found.n_min,
        alpha_min=found.alpha_min,
        guarantee=guarantee,
        horizon=horizon,
        unit=unit,
        conversations=scores.conversations,
        turns=scores.turns,
        method=found.method,
        max_turns=longest,
        always=scores.always,
    )


def _check_alpha(alpha: float, unit: BudgetUnit, max_turns: int) -> None:
    if unit is BudgetUnit.TURN or max_turns == 1:
        check_share("alpha", alpha)
    elif not 0.0 < alpha < max_turns:
        raise ConfigError(
            f"{alpha!r} calls per conversation are not between 0 and {max_turns}, the turns of a conversation",
            key="alpha",
            hint="Set alpha to a mean number of calls, such as 0.5, or use unit: turn",
        )


def _longest(scores: TurnScores, max_turns: int | None) -> int:
    longest = scores.max_turns
    if max_turns is not None and max_turns < longest:
        raise ConfigError(
            f"max_turns = {max_turns} is below the longest conversation of the data, {longest} turns",
            key="max_turns",
            hint=f"Set max_turns to {longest} or more",
        )
    return longest if max_turns is None else max_turns


def infeasible(certificate: Certificate, *, key: str, audit_share: float = 0.0) -> InfeasibleBudgetError:
    """Return the error of a budget that the calibration rows cannot certify.

    Args:
        certificate: The certificate; it is infeasible.
        key: Dotted path of alpha in the operator's file.
        audit_share: Share of the inputs that is paid out of alpha before the certificate's own alpha.
    """
    asked = f"alpha = {certificate.alpha:.6g}"
    rows = "calibration rows" if certificate.conversations == certificate.turns else "conversations"
    # alpha as the operator writes it, audits included. What is shown must be feasible itself.
    alpha_min = audit_share + (1.0 - audit_share) * certificate.alpha_min
    while (float(smallest := round_up(alpha_min)) - audit_share) / (1.0 - audit_share) < certificate.alpha_min:
        alpha_min = math.nextafter(float(smallest), math.inf)
    most = 1 if certificate.unit is BudgetUnit.TURN else certificate.max_turns
    needed = f"{asked} takes {certificate.n_min} {rows.rsplit(maxsplit=1)[-1]}"
    if certificate.always:
        needed = (
            f"{certificate.always} of {certificate.turns} turns go to the expert whatever the threshold, "
            "because the base model cannot read them: see on_overlong and on_nontext"
        )
    hint = f"The smallest alpha that they can certify is {smallest:f}; {needed}"
    return InfeasibleBudgetError(
        f"{key}: {certificate.n} {rows} cannot certify {asked} at delta = {certificate.delta:.6g}",
        alpha=certificate.alpha,
        alpha_min=float(smallest),
        n_min=certificate.n_min,
        hint=hint if smallest < most else f"They can certify no useful alpha; {needed}",
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
