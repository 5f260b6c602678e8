"""The safety probe and the plug-in delegation value, in one pass over mean-pooled activations.

With h the mean over a conversation's token activations:

- Safety probe: logistic, p = sigmoid(w_p . h + b_p).
- Delegation value: the expert's gain v = P_expert(y|x) - P_probe(y|x) = (2y - 1)(e - p) (arXiv 2604.14251,
  section 3). p is known when v is predicted, so only what is unknown is learnt: eta = P(y=1|x), e1 = E[e | x, y=1]
  and e0 = E[e | x, y=0], each linear in [h, u] and clipped to [0, 1], where u = features of p. Plugged in,
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

__all__ = ["FEATURES", "PlugInProbes", "probe_features"]

FEATURES: Final = 5
_LARGEST_LOGIT: Final = 10.0
_HEADS: Final = ("p", "eta", "e1", "e0")


def probe_features(logit: torch.Tensor) -> torch.Tensor:
    """Return u = (logit, |logit|, p, |p - 1/2|, p^2) of the safety probe, shape [..., 5].

    Args:
        logit: Safety probe's logit, shape [...]; clipped to [-10, 10], where p has long saturated.
    """
    logit = logit.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    p = torch.sigmoid(logit)
    return torch.stack([logit, logit.abs(), p, (p - 0.5).abs(), p.square()], dim=-1)


class PlugInProbes:
    """Both probes as one :data:`~ctd_guardrail.activations.engine.Head` of width 2.

    Args:
        tensors: ``weight`` [4, width] and ``bias`` [4] of the heads p (logit), eta, e1 and e0 on h, and
            ``feature_weight`` [3, 5] of eta, e1 and e0 on u.

    Raises:
        PolicyFormatError: A tensor is missing, surplus, of the wrong shape, or not finite.
    """

    kind: Final = "plug_in"

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        width = tensors["weight"].shape[-1] if "weight" in tensors else 0
        expected = {"weight": (len(_HEADS), width), "bias": (len(_HEADS),), "feature_weight": (3, FEATURES)}
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
        logit = heads[:, 0]
        p = torch.sigmoid(logit)
        unknown = heads[:, 1:] + probe_features(logit) @ self._tensors["feature_weight"].T
        eta, e1, e0 = unknown.clamp(0.0, 1.0).unbind(dim=1)
        return torch.stack([p, eta * (e1 - p) + (1.0 - eta) * (p - e0)], dim=1)
