"""Whether an engine serves the export that the policy's guard knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np

from ctd_guardrail._typing import Float32Array
from ctd_guardrail.errors import ActivationError, PolicyMismatchError

__all__ = ["LARGEST_LIST", "check_columns", "check_models", "tolerance"]

LARGEST_LIST: Final = 1 << 20
"""Bytes of a list of models."""


# Root mean square error of a column over its spread between tokens. Other kernels and another order of rounding keep
# well below; another layer, other probes, an activation or a lost token do not.
_TOLERANCES: Final = {"float32": 2e-3, "bfloat16": 0.15, "float16": 0.05}


def tolerance(dtype: Literal["float32", "bfloat16", "float16"]) -> float:
    """Return the largest deviation that is taken for rounding, as a share of a column's spread between tokens."""
    return _TOLERANCES[dtype]


def check_models(body: bytes, *, model: str, window: int) -> None:
    """Refuse an engine that serves no model of this name, or shorter windows.

    Args:
        body: Answer of ``/v1/models``.
        model: Name of the export.
        window: Tokens in one window of the policy.

    Raises:
        ActivationError: The answer is no list of models.
        PolicyMismatchError: The name is not there, or its ``max_model_len`` is too small.
    """
    try:
        cards: list[dict[str, Any]] = json.loads(body)["data"]
        lengths = {str(card["id"]): card.get("max_model_len") for card in cards}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ActivationError("the engine returned no list of models", hint="Check source.base_url") from None
    if model not in lengths:
        raise PolicyMismatchError(
            f"the engine serves no model {model!r}", hint="Set source.model to its --served-model-name"
        )
    length = lengths[model]
    if isinstance(length, int) and length < window:
        raise PolicyMismatchError(
            f"the engine takes {length} tokens, but the policy's windows have {window}",
            hint=f"Serve with --max-model-len {window} or more",
        )


def check_columns(served: Sequence[Float32Array], expected: Sequence[Float32Array], *, limit: float) -> None:
    """Refuse columns that are not those of the export.

    Args:
        served: What the engine gave for each window of the record.
        expected: What the base model in process gave at the export.
        limit: Largest root mean square error of a column over its spread between tokens.

    Raises:
        PolicyMismatchError: A column deviates more.
    """
    found, wanted = np.concatenate(served).astype(np.float64), np.concatenate(expected).astype(np.float64)
    spread = wanted.std(axis=0) + 1e-6 * (1.0 + np.abs(wanted).max(axis=0))
    deviation = float((np.sqrt(((found - wanted) ** 2).mean(axis=0)) / spread).max())
    if not deviation <= limit:
        raise PolicyMismatchError(
            f"the engine's numbers deviate by {deviation:.2g} of their spread from those of the export, "
            f"more than {limit:g}",
            hint="Serve this export with the dtype of its record, without further quantisation",
        )
