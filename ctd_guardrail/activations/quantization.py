"""Weights in 8 or 4 bits.

A score must be the same alone and in a batch, so no token may depend on the others in the batch. This excludes outlier
columns of the whole batch (the default of bitsandbytes in 8 bits). It also excludes activation ranges of the whole
batch (torch's dynamic quantisation).
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from ctd_guardrail.activations.spec import Quantization
from ctd_guardrail.errors import DependencyError

__all__ = ["quantization_config", "require"]


def quantization_config(scheme: Quantization, dtype: torch.dtype) -> Any:
    """Return the ``quantization_config`` of transformers.

    Args:
        scheme: ``int8``: 8-bit weights and activations, scaled by row and by token (LLM.int8 without outliers, arXiv
            2208.07339). ``nf4``: 4-bit weights in blocks of 64, computed in ``dtype`` (arXiv 2305.14314).
        dtype: Of everything that is not quantised.

    Raises:
        DependencyError: The extra ``large`` is not installed.
    """
    require("bitsandbytes", "large")
    # It warns at every product that it computes in half precision.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def require(package: str, extra: str) -> None:
    """Check that an optional package is installed.

    Raises:
        DependencyError: It is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise DependencyError(f"{package} is not installed", hint=f"Run: pip install 'ctd-guardrail[{extra}]'")
