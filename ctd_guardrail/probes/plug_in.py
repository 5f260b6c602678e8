"""The safety probe and the plug-in delegation value, in one pass over mean-pooled activations.

With h the mean over a conversation's token activations:

- Safety probe: logistic, p = sigmoid(w_p . h + b_p).
- Delegation value: the expert's gain v = P_expert(y|x) - P_probe(y|x) = (2y - 1)(e - p) (arXiv 2604.14251,
  section 3). p is known when v is predicted, so only what is unknown is learnt: eta = P(y=1|x), logistic in h, and
  e1 = E[e | x, y=1] and e0 = E[e | x, y=0], linear in h and clipped to [0, 1]. Plugged in,
  d = eta (e1 - p) + (1 - eta)(p - e0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ctd_guardrail.activations.ragged import Ragged, segment_mean
from ctd_guardrail.errors import PolicyFormatError

__all__ = ["PlugInProbes", "delegation_value"]

_HEADS: Final = ("p", "eta", "e1", "e0")


def delegation_value(p: torch.Tensor, eta: torch.Tensor, e1: torch.Tensor, e0: torch.Tensor) -> torch.Tensor:
    """Return d = eta (e1 - p) + (1 - eta)(p - e0), all of one shape.

    Args:
        p: Safety probe, P(unsafe).
        eta: P(y=1|x).
        e1: E[e | x, y=1] as regression gives it; clipped to [0, 1] here.
        e0: E[e | x, y=0], likewise.
    """
    return eta * (e1.clamp(0.0, 1.0) - p) + (1.0 - eta) * (p - e0.clamp(0.0, 1.0))


class PlugInProbes:
    """Both probes as one :data:`~ctd_guardrail.activations.engine.Head` of width 2.

    Args:
        tensors: ``weight`` [4, width] and ``bias`` [4] of the heads p (logit), eta (logit), e1 and e0.

    Raises:
        PolicyFormatError: A tensor is missing, surplus, of the wrong shape, or not finite.
    """

    kind: Final = "plug_in"

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        width = tensors["weight"].shape[-1] if "weight" in tensors else 0
        expected = {"weight": (len(_HEADS), width), "bias": (len(_HEADS),)}
        found = {name: array.shape for name, array in tensors.items()}
        if found != expected:
            raise PolicyFormatError(f"plug-in probes need tensors of shapes {expected}, not {found}")
        for name, array in tensors.items():
            if not np.isfinite(array).all():
                raise PolicyFormatError(f"probe tensor {name!r} holds values that are not finite")
        self._tensors = {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in tensors.items()}

    @property
    def width(self) -> int:
        """Width of the activations that the probes read."""
        return int(self._tensors["weight"].shape[1])

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Return the parameters under their names, as the constructor takes them."""
        return {name: tensor.cpu().numpy() for name, tensor in self._tensors.items()}

    def __call__(self, activations: Ragged) -> torch.Tensor:
        """Return (p, d) of each conversation, shape [conversations, 2]."""
        return self.from_pooled(segment_mean(activations))

    def from_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """Return (p, d) from mean-pooled activations.

        Args:
            pooled: float32, shape [conversations, width].

        Returns:
            Shape [conversations, 2]: p in [0, 1] and d in [-1, 1].
        """
        if self._tensors["weight"].device != pooled.device:
            # Once: the probes move to the device that the base model turns out to be on.
            self._tensors = {name: tensor.to(pooled.device) for name, tensor in self._tensors.items()}
        heads = torch.nn.functional.linear(pooled, self._tensors["weight"], self._tensors["bias"])
        p, eta = torch.sigmoid(heads[:, :2]).unbind(dim=1)
        e1, e0 = heads[:, 2:].unbind(dim=1)
        return torch.stack([p, delegation_value(p, eta, e1, e0)], dim=1)
