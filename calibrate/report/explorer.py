"""Contents of the budget explorer at every alpha, as text that the page's script looks up.

The script computes no statistics and formats no numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from calibrate.config.file import PriceConfig
from calibrate.evaluate.figures import Estimate
from calibrate.evaluate.grid import Grid
from calibrate.report.curve import Point, read_curve
from calibrate.report.law import RateLaw
from calibrate.report.words import NONE, amount, percent, plain, score
from ctd_guardrail.policy.budget import Certificate, Guarantee, Method

__all__ = ["FIGURES", "GUARANTEES", "METHODS", "REQUESTS", "Explorer", "explore"]

REQUESTS: Final = 1000
"""Calls and costs are stated for this many requests."""
GUARANTEES: Final = (Guarantee.EXACT, Guarantee.SIMULTANEOUS)
METHODS: Final = ("probe", "uncertainty", "ctd", "expert")
FIGURES: Final = ("accuracy", "auroc", "missed_harm", "false_alarms")

# Tenths of a percent: steps of half a percent, wider at large budgets.
_GRID: Final = (*range(5, 250, 5), *range(250, 600, 10), *range(600, 1000, 25))
_FIXED: Final = ("probe", "expert")
_DRAWN: Final = (*METHODS, "oracle")

Texts = Mapping[str, Sequence[str]]
Numbers = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Explorer:
    """All points of all curves.

    Attributes:
        alphas: Budgets in ascending order.
        start: Index of the budget that the policy was calibrated for.
        groups: Names of the groups of the test rows, the largest first.
        fixed: Field -> text, for fields that do not depend on the budget.
        fields: Guarantee -> field -> text at each budget.
        lines: Guarantee -> figure -> line -> number at each budget, None if there is none. Shares are in percent.
    """

    alphas: tuple[float, ...]
    start: int
    groups: tuple[str, ...]
    fixed: Mapping[str, str]
    fields: Mapping[str, Texts]
    lines: Mapping[str, Mapping[str, Mapping[str, Numbers]]]

    def at_start(self) -> dict[str, str]:
        """Return every field at the first budget that the page shows."""
        return {name: texts[self.start] for name, texts in self.fields[Guarantee.EXACT].items()} | dict(self.fixed)

    def to_dict(self) -> dict[str, Any]:
        """Return the data of the page's script as JSON-able values."""
        return {
            "start": self.start,
            "budgets": [100 * alpha for alpha in self.alphas],
            "fields": self.fields,
            "lines": self.lines,
        }


def explore(grids: Mapping[Guarantee, Grid], *, alpha: float, prices: PriceConfig | None = None) -> Explorer:
    """Compute the contents of the budget explorer.

    Args:
        grids: The grid under each of :data:`GUARANTEES`.
        alpha: Budget that the explorer starts at.
        prices: Cost of a call; None leaves costs out.

    Raises:
        ConfigError: alpha or delta lies outside (0, 1).
        DataError: All rows have one label.
    """
    alphas = tuple(sorted({step / 1000 for step in _GRID} | {alpha}))
    points = {guarantee: list(read_curve(grids[guarantee], alphas)) for guarantee in GUARANTEES}
    first = points[Guarantee.EXACT][0]
    return Explorer(
        alphas=alphas,
        start=alphas.index(alpha),
        groups=tuple(first.group_rates),
        fixed=_fixed_fields(first, prices),
        fields={guarantee.value: _columns(some, guarantee, prices) for guarantee, some in points.items()},
        lines={guarantee.value: _lines(some) for guarantee, some in points.items()},
    )


def _fixed_fields(point: Point, prices: PriceConfig | None) -> dict[str, str]:
    fields = {name: text for method in _FIXED for name, text in _figure_fields(method, point).items()}
    for method, calls in (("probe", 0), ("expert", REQUESTS)):
        fields |= {f"{method}_calls": f"{calls:,}", f"{method}_cost": _cost(calls, prices)}
    return fields


def _columns(points: Sequence[Point], guarantee: Guarantee, prices: PriceConfig | None) -> Texts:
    records = [_fields(point, guarantee, prices) for point in points]
    return {name: [record[name] for record in records] for name in records[0]}


def _fields(point: Point, guarantee: Guarantee, prices: PriceConfig | None) -> dict[str, str]:
    fields = {
        "alpha": plain(point.alpha),
        "alpha_yaml": f"{point.alpha:.10g}",
        "guarantee_yaml": guarantee.value,
        "problem": point.problem,
        **_law_fields(None if point.problem else point.certificate, prices),
    }
    for method in ("uncertainty", "ctd"):
        fields |= _figure_fields(method, point)
    fields["gain"] = NONE if point.problem else _signed(point.gain)
    for index, rate in enumerate(point.group_rates.values()):
        fields[f"group_{index}"] = NONE if point.problem else percent(rate)
    return fields


def _law_fields(certificate: Certificate | None, prices: PriceConfig | None) -> dict[str, str]:
    """Return the fields that depend on the calibration rows only."""
    names = ("lambda", "k", "rate", "rate_low", "rate_high", "calls", "calls_low", "calls_high", "cost", "cost_low")
    if certificate is None:
        return dict.fromkeys((*names, "cost_high"), NONE)
    calls = REQUESTS * certificate.mean_rate
    fields = {
        "lambda": score(certificate.threshold, 4),
        "k": f"{certificate.k:,}",
        "rate": percent(certificate.mean_rate),
        "calls": f"{calls:,.0f}",
        "cost": _cost(calls, prices),
    }
    law = _law(certificate)
    if law is None:
        return dict.fromkeys((*names, "cost_high"), NONE) | fields
    (low, high), (fewest, most) = law.rates(), law.calls(REQUESTS)
    return fields | {
        "rate_low": percent(low),
        "rate_high": percent(high),
        "calls_low": f"{fewest:,}",
        "calls_high": f"{most:,}",
        "cost_low": _cost(fewest, prices),
        "cost_high": _cost(most, prices),
    }


def _law(certificate: Certificate) -> RateLaw | None:
    """Return the law of the share; None if turns depend on each other, which gives it no closed form."""
    return RateLaw(certificate.k, certificate.n) if certificate.method is Method.EXACT_BINOMIAL else None


def _figure_fields(method: str, point: Point) -> dict[str, str]:
    """Return a method's figures and their errors, as the comparison shows them."""
    fields = {}
    for name in (*FIGURES, "rate"):
        figure = point.figures[method][name]
        write = score if name == "auroc" else percent
        is_void = point.problem and method not in _FIXED
        fields[f"{method}_{name}"] = NONE if is_void else write(figure.value)
        fields[f"{method}_{name}_se"] = "" if is_void else f"± {write(figure.error).removesuffix('%')}"
    return fields


def _signed(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.1f} ± {100 * estimate.error:.1f}"


def _cost(calls: float, prices: PriceConfig | None) -> str:
    return NONE if prices is None else amount(calls * prices.expert_call)


def _lines(points: Sequence[Point]) -> dict[str, dict[str, Numbers]]:
    """Return the chart's lines: each figure of each method, two standard errors around CTD, and the rates."""
    lines: dict[str, dict[str, Numbers]] = {}
    for name in FIGURES:
        figures = {method: [point.figures[method][name] for point in points] for method in _DRAWN}
        lines[name] = {
            method: [
                None if point.problem and method not in {*_FIXED, "oracle"} else _scaled(name, figure.value)
                for point, figure in zip(points, column, strict=True)
            ]
            for method, column in figures.items()
        }
        for side, sign in (("low", -2.0), ("high", 2.0)):
            lines[name][side] = [
                None if point.problem else _scaled(name, figure.value + sign * figure.error)
                for point, figure in zip(points, figures["ctd"], strict=True)
            ]
    lines["rate"] = _rate_lines(points)
    return lines


def _rate_lines(points: Sequence[Point]) -> dict[str, Numbers]:
    certificates = [None if point.problem else point.certificate for point in points]
    laws = [None if certificate is None else _law(certificate) for certificate in certificates]
    return {
        "budget": [_scaled("rate", point.alpha) for point in points],
        "expected": [None if each is None else _scaled("rate", each.mean_rate) for each in certificates],
        "test": [None if point.problem else _scaled("rate", point.figures["ctd"]["rate"].value) for point in points],
        "low": [None if law is None else _scaled("rate", law.rates()[0]) for law in laws],
        "high": [None if law is None else _scaled("rate", law.rates()[1]) for law in laws],
    }


def _scaled(figure: str, value: float) -> float | None:
    if value != value:  # noqa: PLR0124  # NaN: a standard error of one cluster
        return None
    return round(value, 4) if figure == "auroc" else round(100 * value, 2)
