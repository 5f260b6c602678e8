"""Draw the pictures of docs/guarantees.md: ``python docs/images/make_guarantees.py``. Needs matplotlib."""

# ruff: noqa: INP001 - a script beside the pictures that it draws, not a package

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from scipy.stats import beta, betabinom

from ctd_guardrail.policy.envelope import Simultaneous
from ctd_guardrail.policy.guarantees import Expected, NextRequests, max_exceedances
from ctd_guardrail.policy.spending import spent_delta

FOLDER = Path(__file__).parent
N, ALPHA, DELTA = 1000, 0.1, 0.05
BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#718096"


def main() -> None:
    """Write every picture beside this file."""
    mpl.use("svg")
    mpl.rcParams.update(
        {
            "svg.hashsalt": "guarantees",  # the same picture is the same file
            "svg.fonttype": "none",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    for draw in (exact, simultaneous, expected, next_requests, structured, recalibration, rows_needed):
        figure, axes = plt.subplots(figsize=(6.4, 2.9), layout="constrained")
        draw(axes)
        name = draw.__name__.removesuffix("_requests")
        figure.savefig(FOLDER / f"guarantee_{name}.svg", metadata={"Date": None})
        plt.close(figure)


def _rates(axes: Axes, k: int, color: str, label: str) -> None:
    """Draw the law of the rate with k scores above the threshold, and shade what lies over budget."""
    rate = np.linspace(0.06, 0.14, 241)
    density = beta.pdf(rate, k + 1, N - k)
    axes.plot(100 * rate, density, color=color, label=label)
    over = rate >= ALPHA
    axes.fill_between(100 * rate[over], density[over], color=color, alpha=0.35, linewidth=0)
    axes.axvline(100 * ALPHA, color="black", linewidth=1)
    axes.set(xlabel="share of inputs delegated, %", yticks=[], xlim=(6, 14))
    axes.spines["left"].set_visible(False)


def exact(axes: Axes) -> None:
    """Where the rate falls over calibration draws."""
    k = max_exceedances(N, ALPHA, DELTA)
    over = beta.sf(ALPHA, k + 1, N - k)
    _rates(axes, k, BLUE, f"exact: over budget in {100 * over:.1f}% of calibrations")
    axes.text(10.1, 30, "budget", ha="left")
    axes.legend(frameon=False, loc="upper right")


def expected(axes: Axes) -> None:
    """The same picture with the mean at the budget."""
    for k, color, name in (
        (max_exceedances(N, ALPHA, DELTA), BLUE, "exact"),
        (Expected().exceedances(N, ALPHA), ORANGE, "expected"),
    ):
        over = beta.sf(ALPHA, k + 1, N - k)
        _rates(axes, k, color, f"{name}: over budget in {100 * over:.0f}%")
    axes.legend(frameon=False, loc="upper right")


def simultaneous(axes: Axes) -> None:
    """What fixing alpha beforehand is worth."""
    alphas = np.linspace(0.01, 0.55, 200)
    rule = Simultaneous(DELTA)
    fixed = [(max_exceedances(N, a, DELTA) + 1) / (N + 1) / a for a in alphas.tolist()]
    joint = [(rule.exceedances(N, a) + 1) / (N + 1) / a for a in alphas.tolist()]
    axes.plot(100 * alphas, 100 * np.array(fixed), color=BLUE, label="exact: one alpha, fixed beforehand")
    axes.plot(100 * alphas, 100 * np.array(joint), color=ORANGE, label="simultaneous: any alpha, chosen after looking")
    axes.set(xlabel="budget alpha, %", ylabel="budget used, %", ylim=(0, 100), xlim=(0, 55))
    axes.legend(frameon=False, loc="lower right")


def next_requests(axes: Axes) -> None:
    """The count of calls in a window, under both promises."""
    horizon = 1000
    counts = np.arange(30, 150)
    for k, color, name in (
        (max_exceedances(N, ALPHA, DELTA), BLUE, "exact"),
        (NextRequests(DELTA, horizon).exceedances(N, ALPHA), ORANGE, "next 1,000"),
    ):
        law = betabinom.pmf(counts, horizon, k + 1, N - k)
        over = betabinom.sf(ALPHA * horizon, horizon, k + 1, N - k)
        axes.step(counts, law, color=color, where="mid", label=f"{name}: over 100 calls in {100 * over:.1f}%")
        beyond = counts > ALPHA * horizon
        axes.fill_between(counts[beyond], law[beyond], color=color, alpha=0.35, step="mid", linewidth=0)
    axes.axvline(ALPHA * horizon, color="black", linewidth=1)
    axes.set(xlabel="calls among the next 1,000 requests", yticks=[], xlim=(30, 150))
    axes.spines["left"].set_visible(False)
    axes.legend(frameon=False, loc="upper right")


def structured(axes: Axes) -> None:
    """Two certificates on the axis of thresholds."""
    bars = (
        (2, 0.42, 1.0, BLUE, "within budget, certified on all scores"),
        (1, 0.2, 0.68, ORANGE, "risk below its bound, certified on labelled rows"),
        (0, 0.42, 0.68, "black", "both: the best of these is chosen"),
    )
    for height, left, right, color, label in bars:
        axes.barh(height, right - left, left=left, height=0.45, color=color, alpha=0.8)
        axes.text(left, height + 0.32, label, va="bottom", fontsize=9)
    axes.set(xlim=(0, 1), ylim=(-0.5, 2.9), yticks=[], xticks=[])
    axes.set_xlabel(
        "delegates everything   \N{LEFTWARDS ARROW}   threshold lambda   \N{RIGHTWARDS ARROW}   delegates nothing"
    )
    axes.spines["left"].set_visible(False)


def recalibration(axes: Axes) -> None:
    """What each further look costs in budget."""
    looks = np.arange(1, 25)
    for n, color in ((1000, GREY), (10_000, BLUE), (100_000, ORANGE)):
        used = [(max_exceedances(n, ALPHA, spent_delta(DELTA, i)) + 1) / (n + 1) / ALPHA for i in looks.tolist()]
        axes.plot(looks, 100 * np.array(used), "o-", markersize=3, color=color, label=f"{n:,} scores")
    axes.set(xlabel="recalibration number", ylabel="budget used, %", ylim=(60, 100))
    axes.legend(frameon=False, loc="lower left", ncols=3)


def rows_needed(axes: Axes) -> None:
    """How much of the budget n rows let one use."""
    sizes = np.unique(np.geomspace(20, 100_000, 300).astype(int))
    for alpha, color in ((0.05, GREY), (0.1, BLUE), (0.3, ORANGE)):
        used = [(max_exceedances(n, alpha, DELTA) + 1) / (n + 1) / alpha for n in sizes.tolist()]
        axes.semilogx(sizes, 100 * np.array(used), color=color, label=f"alpha = {alpha}")
    axes.set(xlabel="calibration rows", ylabel="budget used, %", ylim=(0, 100))
    axes.legend(frameon=False, loc="lower right")


if __name__ == "__main__":
    main()
