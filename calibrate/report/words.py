"""Format of numbers in the report and the model card."""

from __future__ import annotations

import math

__all__ = ["NONE", "amount", "percent", "plain", "score"]

NONE = "\N{EN DASH}"
"""Shown if there is no number."""


def percent(share: float, digits: int = 1) -> str:
    """Return a share in percent: ``8.5%``."""
    return f"{100 * share:.{digits}f}%" if math.isfinite(share) else NONE


def score(value: float, digits: int = 3) -> str:
    """Return a number with a fixed number of decimals: ``0.871``."""
    return f"{value:.{digits}f}" if math.isfinite(value) else NONE


def plain(share: float) -> str:
    """Return a share in percent without trailing zeros: ``10%``, ``2.5%``."""
    return f"{100 * share:.10g}%"


def amount(value: float) -> str:
    """Return an amount of money with two decimals, or with two digits if it is small: ``0.17``, ``0.0042``."""
    return f"{value:,.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}"  # noqa: PLR2004  # ten cents
