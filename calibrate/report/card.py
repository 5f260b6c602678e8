"""MODEL_CARD.md: details of a policy, its data, its figures and its limits.

After "Model Cards for Model Reporting" (Mitchell et al. 2019): details, intended use, data, figures with their errors,
limits.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from calibrate.evaluate.grid import ALPHAS
from calibrate.evaluate.rows import ScoredRows
from calibrate.report.calibration_data import CalibrationData
from calibrate.report.explorer import Explorer
from calibrate.report.words import percent, plain
from ctd_guardrail.policy.store import Policy

__all__ = ["CARD_FILE", "at_budgets", "write_card"]

CARD_FILE: Final = "MODEL_CARD.md"

# Characters that are markup in Markdown or HTML. Inside a word an underscore is not.
_MARKUP: Final = re.compile(r"[\\`*{}\[\]<>()#!|~&$\"'\x00-\x1f\x7f]|(?<!\w)_|_(?!\w)")


def write_card(folder: Path, policy: Policy, rows: ScoredRows, explorer: Explorer) -> Path:
    """Write MODEL_CARD.md and return its path.

    Args:
        folder: An existing folder.
        policy: The policy that the card describes.
        rows: Test rows.
        explorer: The figures, by :func:`calibrate.report.page.explore_policy`.
    """
    environment = Environment(
        loader=PackageLoader("calibrate.report", "templates"),
        autoescape=False,  # noqa: S701  # every expression is escaped for Markdown instead
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "plain": plain}
    text = environment.get_template("model_card.md").render(
        manifest=policy.manifest,
        start=explorer.at_start(),
        glance=at_budgets(explorer),
        groups=_groups(rows),
        data=CalibrationData.of(policy),
        test_rows=rows.label.size,
        unsafe_rows=int(rows.label.sum()),
        clusters=len(set(rows.clusters.tolist())),
    )
    path = folder / CARD_FILE
    path.write_text(text, encoding="utf-8")
    return path


def at_budgets(explorer: Explorer) -> list[dict[str, str]]:
    """Return the explorer's fields at some budgets, under the guarantee ``exact``."""
    chosen = sorted({*ALPHAS, explorer.alphas[explorer.start]})
    indices = [explorer.alphas.index(alpha) for alpha in chosen]
    return [{name: texts[index] for name, texts in explorer.fields["exact"].items()} for index in indices]


def _groups(rows: ScoredRows) -> list[tuple[str, int, float]]:
    """Return name, size and share of harmful rows of each group, the largest first."""
    members: dict[str, list[float]] = {}
    for name, label in zip(rows.group or (), rows.label.tolist(), strict=rows.group is not None):
        members.setdefault(name, []).append(label)
    groups = [(name, len(labels), sum(labels) / len(labels)) for name, labels in members.items()]
    return sorted(groups, key=lambda group: (-group[1], group[0]))


def _escaped(value: Any) -> Any:
    """Return text without markup: entities are never markup (CommonMark 0.31, section 2.5)."""
    if not isinstance(value, str):
        return value
    return _MARKUP.sub(lambda found: f"&#{ord(found.group())};", value)
