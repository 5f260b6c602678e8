"""The plug-in delegation value.

With the true label y, replacing the probe's score p by the expert's score e gains v = P_expert(y|x) - P_probe(y|x)
= (2y - 1)(e - p) (arXiv 2604.14251, section 3). p is known when v is predicted. So only the unknown parts are learnt:
eta = P(y=1|x), e1 = E[e | x, y=1] and e0 = E[e | x, y=0]. Together they give d = eta (e1 - p) + (1 - eta)(p - e0).
"""

from __future__ import annotations

import torch

__all__ = ["delegation_value"]


def delegation_value(p: torch.Tensor, eta: torch.Tensor, e1: torch.Tensor, e0: torch.Tensor) -> torch.Tensor:
    """Return d = eta (e1 - p) + (1 - eta)(p - e0) in [-1, 1]. All tensors have one shape.

    Args:
        p: Safety probe, P(unsafe).
        eta: P(y=1|x).
        e1: E[e | x, y=1], the output of a regression. It is clipped to [0, 1] here.
        e0: E[e | x, y=0], clipped in the same way.
    """
    return eta * (e1.clamp(0.0, 1.0) - p) + (1.0 - eta) * (p - e0.clamp(0.0, 1.0))
