"""The smallest threshold that whole conversations certify, by bets against the hypothesis that it exceeds the budget.

Conversation i has T_i turns, at most Tmax, and D_i(lambda) of them lie above lambda. Its allowance a_i is alpha T_i if
alpha bounds calls per turn, and alpha if it bounds calls per conversation. Let x_i = a_i - D_i(lambda). The hypothesis
of lambda says that the budget is exceeded: E[x_i] < 0. A gambler starts with capital 1, stakes nu_i on each x_i, and
has K = prod(1 + nu_i x_i). If nu_i depends on earlier conversations only, K is a nonnegative supermartingale under the
hypothesis, so it ever reaches 1 / delta with probability at most delta (Ville). The dependence within a conversation
and the law of its length do not matter. lambda is certified if K reaches 1 / delta.

**Monotone in lambda.** Every x_i grows with lambda. So does K at each step, if the stakes are the same for all lambda,
or if they depend on the capital alone and the update y -> y + log(1 + nu(y) x) of y = log K is increasing. Then the
certified thresholds form an interval, and a binary search finds its lower end. The error is that of the test of one
threshold: there is no correction for many, and no grid.

There are two strategies.

- *The number of conversations is known.* The stake is the hedge of an option on the sum of the x_i. The option pays
  1 / delta above the quantile that a normal test would use: nu(y) = m(z) / sigma with z = Phi^-1(1 - delta K),
  m = phi / (1 - Phi), and sigma the standard deviation of the sum that is left. It needs less than a constant stake,
  as a normal tail is below its Chernoff bound (targets are recalculated as in Voracek and Orabona, arXiv 2505.22422).
  m is a concave, decreasing function of y, and the stake of the next b conversations is at most (Y - y) / (b A), where
  Y is the aim and A = max x. Hence nu' >= -1 / (b A). As sum(x / (1 + nu x)) <= b A, the update is increasing.
- *The data grow.* The stake sqrt(2 log(1 / delta) / (h s2)) is the same for all lambda. The horizon h is the number of
  conversations at the first look, and then doubles. The test may be looked at after each conversation, at no cost.

Both need the variance s2 of x_i near the threshold. It is estimated at a threshold that spends alpha on the past
conversations, whenever their number doubles, so it depends on no lambda. A wrong estimate costs power, not validity.
The order of the conversations is that of their arrival for data that grow, else a fixed shuffle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import ndtri

from ctd_guardrail._typing import BoolArray, FloatArray, IntArray
from ctd_guardrail.policy.turns import BudgetUnit, TurnScores

__all__ = ["Bets"]

_SEED: Final = 20251202
# The largest part of the capital that one conversation may cost.
_LARGEST_LOSS: Final = 0.99
# Stakes aim a little above log(1 / delta): they vanish at their aim, and would approach it without reaching it.
_OVERSHOOT: Final = 0.05
# Conversations between two updates of the stake, times A, in standard deviations of the x_i that are left. Up to about
# .35 the cap (Y - y) / (b A) stays above the hedge.
_STEP: Final = 0.3
# Thresholds that one pass over the conversations tries.
_TRIED: Final = 16
# The variance is first estimated from this many conversations.
_FIRST_ESTIMATE: Final = 8
# From this number of conversations on, the number that is needed is a bound and a margin on it.
_MOST_TRIED: Final = 20_000
_MARGIN: Final = 1.05
# exp(-x) is above zero up to here. A capital so small never comes back.
_LARGEST_EXPONENT: Final = 700.0
_SQRT_TWO_PI: Final = math.sqrt(2.0 * math.pi)


@dataclass(frozen=True, slots=True)
class _Sides:
    """Allowance of each conversation in the order of the bets, and the extremes of x."""

    allowance: FloatArray
    largest_gain: float
    largest_loss: float


class Bets:
    """Bets on the conversations of one set of scores.

    Args:
        scores: The turns.
        delta: Error probability in (0, 1).
        unit: What alpha is a share or a number of.
        max_turns: Tmax, at least the length of the longest conversation.
        first_look: For data that grow and are certified again at the same delta: the number of conversations when
            they were first certified. None for data that do not grow.
    """

    def __init__(
        self, scores: TurnScores, delta: float, *, unit: BudgetUnit, max_turns: int, first_look: int | None = None
    ) -> None:
        self._unit, self._max_turns, self._first_look = unit, max_turns, first_look
        self._target = -math.log(delta)
        self._d = scores.d
        conversation = np.arange(scores.turns) if scores.conversation is None else scores.conversation
        n = scores.conversations
        # The place of each conversation in the order of the bets.
        place = np.random.default_rng(_SEED).permutation(n) if first_look is None else np.arange(n)
        self._place: IntArray = place[conversation]
        self._lengths = np.bincount(self._place, minlength=n).astype(np.int64)
        by_place = np.argsort(self._place, kind="stable")
        self._d_by_place, self._grouped = self._d[by_place], self._place[by_place]
        self._always = np.bincount(self._place[np.isinf(self._d)], minlength=n).astype(np.float64)

    def threshold(self, alpha: float) -> float:
        """Return the smallest score that is certified as the threshold for alpha, or ``+inf`` if none is."""
        sides, scales = self._sides(alpha), self._scales(alpha)
        finite = int(np.searchsorted(self._d, np.inf))
        # Scores at `low` and below are not certified, those at `high` and above are.
        low, high = -1, finite
        tried = self._first_places(sides, scales, finite)
        while high - low > 1:
            certified = self._certifies(self._counts_above(tried), sides, scales)
            high = min([high, *tried[certified].tolist()])
            low = max([low, *tried[~certified].tolist()])
            tried = np.unique(np.linspace(low + 1, high - 1, min(_TRIED, max(high - low - 1, 1))).astype(np.int64))
        return float(self._d[high]) if high < finite else math.inf

    def is_feasible(self, alpha: float) -> bool:
        """Return whether any threshold is certified for alpha."""
        return bool(self._certifies(self._always[:, None], self._sides(alpha), self._scales(alpha))[0])

    def min_alpha(self) -> float:
        """Return an alpha that is feasible and close to the smallest, or the largest alpha there is."""
        # Largest stakes give a lower bound if no turn is delegated always: every x is positive.
        end = 1.0 if self._unit is BudgetUnit.TURN else float(self._max_turns)
        low, high = 0.0, end
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if self._may_be_feasible(middle) else (middle, high)
        spent = self._always.sum() / (self._lengths.sum() if self._unit is BudgetUnit.TURN else self._lengths.size)
        alpha, step = max(high, float(spent)), 1.02
        while alpha < end and not self.is_feasible(alpha):
            alpha, step = alpha * step, step**1.25
        return min(alpha, end)

    def min_conversations(self, alpha: float) -> int:
        """Return a number of conversations like these that can certify alpha if no turn is delegated always."""
        sides = self._sides(alpha)
        growth = float(np.log1p(_LARGEST_LOSS / sides.largest_loss * sides.allowance).mean())
        # The largest stakes throughout would need this many; the strategy needs a few percent more.
        n, step = max(1, math.ceil(self._target / growth)), 1.02
        if n > _MOST_TRIED:
            return math.ceil(_MARGIN * n)
        while not self._repeated(n).is_feasible(alpha):
            n, step = max(n + 1, math.ceil(n * step)), step**1.25
        return n

    def _repeated(self, n: int) -> Bets:
        """Return bets on n conversations with the lengths of these, over and over, and none delegated always."""
        lengths = np.resize(self._lengths, n)
        turns = TurnScores(np.zeros(int(lengths.sum())), np.repeat(np.arange(n), lengths))
        return Bets(
            turns,
            math.exp(-self._target),
            unit=self._unit,
            max_turns=self._max_turns,
            first_look=None if self._first_look is None else n,
        )

    def _may_be_feasible(self, alpha: float) -> bool:
        sides = self._sides(alpha)
        return float(np.log1p(_LARGEST_LOSS / sides.largest_loss * sides.allowance).sum()) >= self._target

    def _sides(self, alpha: float) -> _Sides:
        if self._unit is BudgetUnit.CONVERSATION:
            return _Sides(np.full(self._lengths.size, alpha), alpha, self._max_turns - alpha)
        return _Sides(
            alpha * self._lengths.astype(np.float64), alpha * self._max_turns, (1.0 - alpha) * self._max_turns
        )

    def _scales(self, alpha: float) -> list[tuple[int, float]]:
        """Return estimates of E[x^2] near the threshold, each with the number of conversations it was made from."""
        sides, n = self._sides(alpha), self._lengths.size
        # The variance of Tmax independent turns stands for one more conversation.
        prior = sides.largest_gain * sides.largest_loss / self._max_turns
        found = [(0, prior)]
        ends, seen = np.cumsum(self._lengths), _FIRST_ESTIMATE
        while seen < n:
            turns = int(ends[seen - 1])
            past, allowance = self._d_by_place[:turns], sides.allowance[:seen]
            rank = turns - 1 - min(int(allowance.sum()), turns - 1)
            above = past > np.partition(past, rank)[rank]
            x = allowance - np.bincount(self._grouped[:turns][above], minlength=seen)
            # Few turns lie above it at first, or none. Their number varies at least as that of independent turns.
            mean = turns / seen
            share = float(allowance.mean()) / mean
            found.append((seen, max((float(x @ x) + prior) / (seen + 1), mean * share * (1.0 - share))))
            seen *= 2
        return found

    def _first_places(self, sides: _Sides, scales: list[tuple[int, float]], finite: int) -> IntArray:
        """Return places in the order of d around that of a normal test; the search goes on from them."""
        spread = math.sqrt(self._lengths.size * scales[-1][1])
        count = sides.allowance.sum() - np.linspace(0.5, 1.5 + self._target * 1.5, _TRIED) * spread
        return np.unique(np.clip(self._d.size - 1 - count, 0, max(finite - 1, 0)).astype(np.int64))

    def _counts_above(self, places: IntArray) -> FloatArray:
        """Return D_i for the thresholds at these places in the order of d, shape [conversations, thresholds]."""
        n, end = self._lengths.size, self._d.size
        counts = np.empty((n, places.size))
        above = np.zeros(n)
        for column in range(places.size - 1, -1, -1):
            start = int(np.searchsorted(self._d, self._d[places[column]], side="right"))
            above = above + np.bincount(self._place[start:end], minlength=n)
            counts[:, column], end = above, start
        return counts

    def _certifies(self, counts: FloatArray, sides: _Sides, scales: list[tuple[int, float]]) -> BoolArray:
        x = sides.allowance[:, None] - counts
        if self._first_look is None:
            return self._bet_hedged(x, sides, scales)
        return self._bet_growing(x, sides, scales, self._first_look)

    def _bet_growing(self, x: FloatArray, sides: _Sides, scales: list[tuple[int, float]], first_look: int) -> BoolArray:
        n = x.shape[0]
        variance = np.empty(n)
        for seen, estimate in scales:
            variance[seen:] = estimate
        doublings = np.ceil(np.log2(np.maximum(np.arange(1, n + 1) / first_look, 1.0)))
        horizon = first_look * np.exp2(doublings)
        stake = np.minimum(np.sqrt(2.0 * self._target / (horizon * variance)), _LARGEST_LOSS / sides.largest_loss)
        reached: BoolArray = np.cumsum(np.log1p(stake[:, None] * x), axis=0).max(axis=0) >= self._target
        return reached

    def _bet_hedged(self, x: FloatArray, sides: _Sides, scales: list[tuple[int, float]]) -> BoolArray:
        n, start, estimate = x.shape[0], 0, 0
        capital, reached = np.zeros(x.shape[1]), np.zeros(x.shape[1], dtype=np.bool_)
        aim = self._target + _OVERSHOOT
        while start < n and not reached.all():
            while estimate + 1 < len(scales) and scales[estimate + 1][0] <= start:
                estimate += 1
            next_estimate = scales[estimate + 1][0] if estimate + 1 < len(scales) else n
            sigma = math.sqrt((n - start) * scales[estimate][1])
            block = min(max(1, int(_STEP * sigma / sides.largest_gain)), next_estimate - start)
            to_go = np.maximum(aim - capital, 1e-12)
            stake = np.minimum(_hedge(to_go) / sigma, to_go / (block * sides.largest_gain))
            stake = np.minimum(stake, _LARGEST_LOSS / sides.largest_loss)
            path = capital + np.cumsum(np.log1p(stake * x[start : start + block]), axis=0)
            reached |= path.max(axis=0) >= self._target
            capital, start = path[-1], start + block
        return reached


def _hedge(to_go: FloatArray) -> FloatArray:
    """Return phi(z) / (1 - Phi(z)) at the z that a standard normal exceeds with probability exp(-to_go)."""
    chance = np.exp(-np.minimum(to_go, _LARGEST_EXPONENT))
    z = ndtri(chance)
    hedge: FloatArray = np.exp(-0.5 * z * z) / (_SQRT_TWO_PI * chance)
    return hedge
