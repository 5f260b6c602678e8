"""From p-values to rejected hypotheses with P(any false rejection) <= delta, under any dependence between them.

A rejected hypothesis "the risk at this setting exceeds its level" certifies the setting. The procedures differ in how
they use what is known beforehand: nothing (Bonferroni, Holm), an order (fixed sequence), or a graph. Order and graph
must come from constants or from rows that the p-values have not seen; learnt on the same rows they control nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ctd_guardrail.errors import DataError
from ctd_guardrail.policy.guarantees import check_share

__all__ = ["bonferroni", "fixed_sequence", "holm", "sequential_graphical"]

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def bonferroni(p_values: ArrayLike, delta: float) -> BoolArray:
    """Reject where p <= delta / m (Bonferroni 1936).

    Args:
        p_values: Shape [m].
        delta: Family-wise error in (0, 1).

    Returns:
        What is rejected, shape [m].

    Raises:
        DataError: A p-value is NaN or outside [0, 1].
    """
    p = _checked(p_values, delta)
    return p <= delta / max(1, p.size)


def holm(p_values: ArrayLike, delta: float) -> BoolArray:
    """Reject the smallest p-values while the j-th is at most delta / (m - j + 1) (Holm 1979).

    Args:
        p_values: Shape [m].
        delta: Family-wise error in (0, 1).

    Returns:
        What is rejected, shape [m].

    Raises:
        DataError: A p-value is NaN or outside [0, 1].
    """
    p = _checked(p_values, delta)
    order = np.argsort(p, kind="stable")
    passed = p[order] <= delta / np.arange(p.size, 0, -1)
    rejected = np.zeros(p.size, dtype=np.bool_)
    rejected[order] = np.logical_and.accumulate(passed)
    return rejected


def fixed_sequence(p_values: ArrayLike, delta: float, order: Sequence[int] | None = None) -> BoolArray:
    """Reject in a given order while p <= delta, and stop at the first that is not (Maurer et al. 1995).

    Each is tested at the full delta: the price is paid by stopping.

    Args:
        p_values: Shape [m].
        delta: Family-wise error in (0, 1).
        order: Indices in the order of testing, fixed without the rows behind the p-values; None takes them as they
            stand.

    Returns:
        What is rejected, shape [m].

    Raises:
        DataError: A p-value is NaN or outside [0, 1], or ``order`` names one twice.
    """
    p = _checked(p_values, delta)
    index = np.arange(p.size) if order is None else np.asarray(order, dtype=np.intp)
    if np.unique(index).size != index.size:
        raise DataError("the order of a fixed-sequence test names a hypothesis twice")
    rejected = np.zeros(p.size, dtype=np.bool_)
    rejected[index] = np.logical_and.accumulate(p[index] <= delta)
    return rejected


def sequential_graphical(p_values: ArrayLike, delta: float, *, weights: ArrayLike, transitions: ArrayLike) -> BoolArray:
    """Reject along a graph: a rejected hypothesis passes its share of delta on (Bretz et al. 2009, algorithm 1).

    Args:
        p_values: Shape [m].
        delta: Family-wise error in (0, 1).
        weights: Shares of delta at the start, non-negative with sum at most 1, shape [m].
        transitions: Row i says how hypothesis i hands on its share: non-negative, zero diagonal, row sums at most 1,
            shape [m, m].

    Returns:
        What is rejected, shape [m].

    Raises:
        DataError: A p-value is NaN or outside [0, 1], or the graph is not of the stated form.
    """
    p = _checked(p_values, delta)
    share = np.array(weights, dtype=np.float64)
    graph = np.array(transitions, dtype=np.float64)
    _check_graph(p.size, share, graph)
    open_ = np.ones(p.size, dtype=np.bool_)
    while (passing := np.flatnonzero(open_ & (share > 0.0) & (p <= share * delta))).size:
        i = int(passing[0])
        open_[i] = False
        share += share[i] * graph[i]
        # Paths through i are joined up; a pair that only led to itself keeps nothing.
        through = graph + np.outer(graph[:, i], graph[i])
        kept = (1.0 - graph[:, i] * graph[i])[:, None]
        graph = np.divide(through, kept, out=np.zeros_like(through), where=kept > 0.0)
        graph[i, :] = 0.0
        graph[:, i] = 0.0
        np.fill_diagonal(graph, 0.0)
        share[i] = 0.0
    return ~open_


def _checked(p_values: ArrayLike, delta: float) -> FloatArray:
    check_share("delta", delta)
    p = np.asarray(p_values, dtype=np.float64)
    # A NaN compares false with everything: left in, it would silently stop or empty a procedure.
    bad = np.flatnonzero(~((p >= 0.0) & (p <= 1.0)))
    if bad.size:
        raise DataError(f"p-value is {p[bad[0]]}, not in [0, 1]", row=int(bad[0]) + 1)
    return p


def _check_graph(size: int, weights: FloatArray, transitions: FloatArray) -> None:
    if weights.shape != (size,) or transitions.shape != (size, size):
        raise DataError(f"a graph of {size} hypotheses has weights {weights.shape}, transitions {transitions.shape}")
    # Row sums of thirds and the like exceed 1 by rounding.
    slack = 1.0 + 1e-12
    if (weights < 0.0).any() or weights.sum() > slack:
        raise DataError("the weights of a graph are non-negative and sum to at most 1")
    if (transitions < 0.0).any() or (transitions.sum(axis=1) > slack).any() or np.diag(transitions).any():
        raise DataError("the transitions of a graph are non-negative, with zero diagonal and row sums of at most 1")
