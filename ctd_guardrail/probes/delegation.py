"""The plug-in delegation value.

With the true label y, replacing the probe's score p by the expert's e gains v = P_expert(y|x) - P_probe(y|x)
= (2y - 1)(e - p) (arXiv 2604.14251, section 3). p is known when v is predicted, so only what is unknown is learnt:
eta = P(y=1|x), e1 = E[e | x, y=1] and e0 = E[e | x, y=0]. Plugged in, d = eta (e1 - p) + (1 - eta)(p - e0). Where a
missed harm and a false alarm are not equally dear, each term is weighted by its cost.
"""

from __future__ import annotations

import torch

from ctd_guardrail.probes.spec import DelegationCosts

__all__ = ["delegation_value"]


def delegation_value(
    p: torch.Tensor,
    eta: torch.Tensor,
    e1: torch.Tensor,
    e0: torch.Tensor,
    *,
    costs: DelegationCosts = DelegationCosts(),  # noqa: B008  # frozen
) -> torch.Tensor:
    """Return d = c1 eta (e1 - p) + c0 (1 - eta)(p - e0), all of one shape, in [-1, 1].

    Args:
        p: Safety probe, P(unsafe).
        eta: P(y=1|x).
        e1: E[e | x, y=1] as regression gives it; clipped to [0, 1] here.
        e0: E[e | x, y=0], likewise.
        costs: c1 of a missed harm and c0 of a false alarm, as shares of the larger one.
    """
    missed, false_alarm = costs.relative
    return missed * eta * (e1.clamp(0.0, 1.0) - p) + false_alarm * (1.0 - eta) * (p - e0.clamp(0.0, 1.0))
