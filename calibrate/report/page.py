"""The report: one HTML file that loads nothing and sends nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from calibrate.config.file import PriceConfig
from calibrate.evaluate.grid import policy_grid, policy_share
from calibrate.evaluate.merges import merges_table
from calibrate.evaluate.rows import ScoredRows
from calibrate.expert_scores.refused import RefusedRow
from calibrate.report.calibration_data import CalibrationData
from calibrate.report.card import at_budgets
from calibrate.report.explorer import FIGURES, GUARANTEES, METHODS, REQUESTS, Explorer, explore
from calibrate.report.law import BAND
from calibrate.report.records import record_tables
from calibrate.report.snippet import snippet
from calibrate.report.words import percent, plain, score
from ctd_guardrail.config.experts import ExpertConfig
from ctd_guardrail.policy.store import Policy

if TYPE_CHECKING:
    from calibrate.report.plots import Plot

__all__ = ["REPORT_FILE", "explore_policy", "write_report"]

REPORT_FILE: Final = "report.html"

_TEMPLATES: Final = "templates"
_GROUPS_SHOWN: Final = 24
_REFUSED_SHOWN: Final = 50


def write_report(
    folder: Path,
    policy: Policy,
    rows: ScoredRows,
    *,
    prices: PriceConfig | None = None,
    expert: ExpertConfig | None = None,
    policy_folder: Path | None = None,
    explorer: Explorer | None = None,
    plots: Sequence[Plot] = (),
    refused: Sequence[RefusedRow] = (),
) -> Path:
    """Write report.html and return its path.

    Args:
        folder: An existing folder.
        policy: The policy of the report.
        rows: Test rows.
        prices: Cost of a call; None leaves costs out.
        expert: The expert that calibration asked; None if scores came with the data.
        policy_folder: Folder of the policy; None means ``folder``.
        explorer: Result of :func:`explore_policy` for these rows; None computes it.
        plots: Plots of a study of the same rows.
        refused: Rows without an expert score.

    Raises:
        DataError: The rows cannot be evaluated.
    """
    explorer = explorer or explore_policy(policy, rows, prices)
    content = {
        "manifest": policy.manifest,
        "explorer": explorer,
        "glance": at_budgets(explorer),
        "merges": _merges(policy, rows),
        "prices": prices,
        "snippet": snippet(policy.manifest, policy_folder or folder, expert),
        "recorded": expert is None,
        "data": CalibrationData.of(policy),
        "test_rows": rows.label.size,
        "unsafe_rows": int(rows.label.sum()),
        "clusters": len(set(rows.clusters.tolist())),
        "training": list(record_tables(policy.manifest.training)),
        "group_limit": _GROUPS_SHOWN,
        "refused": refused,
        "refused_limit": _REFUSED_SHOWN,
        "plots": [{"title": plot.title, "alt": plot.alt, "source": _data_url(plot.svg)} for plot in plots],
    }
    path = folder / REPORT_FILE
    path.write_text(_render(content), encoding="utf-8")
    return path


def explore_policy(policy: Policy, rows: ScoredRows, prices: PriceConfig | None = None) -> Explorer:
    """Compute the budget explorer of a policy, with the thresholds that the rail derives from it.

    Args:
        policy: Its manifest states alpha and delta, its scores certify.
        rows: Test rows.
        prices: Cost of a call.

    Raises:
        DataError: The rows cannot be evaluated.
    """
    grids = {guarantee: policy_grid(policy, rows, guarantee=guarantee) for guarantee in GUARANTEES}
    return explore(grids, alpha=policy_share(policy), prices=prices)


def _merges(policy: Policy, rows: ScoredRows) -> list[dict[str, str]]:
    """Return the figures of each merge at the policy's own budget."""
    table = merges_table(policy_grid(policy, rows), [policy_share(policy)])
    return [
        {
            "name": record["merge"],
            **{
                name: f"{write(record[name])} ± {write(record[f'{name}_se']).removesuffix('%')}"
                for name, write in (("accuracy", percent), ("auroc", score), ("missed_harm", percent))
            },
        }
        for record in table.rows
    ]


def _render(content: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("calibrate.report", _TEMPLATES),
        autoescape=True,  # group names, file names and records come from data
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"percent": percent, "plain": plain}
    style, script = _template("style.css"), _template("explorer.js")
    return environment.get_template("report.html").render(
        style=style,
        script=script,
        policy=_content_security_policy(style, script),
        requests=REQUESTS,
        band=BAND,
        methods=METHODS,
        figures=FIGURES,
        **content,
    )


def _content_security_policy(style: str, script: str) -> str:
    """Allow this style and this script, pictures that the page carries, and nothing else."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _template(name: str) -> str:
    return (files("calibrate.report") / _TEMPLATES / name).read_text(encoding="utf-8")


def _data_url(svg: str) -> str:
    # Inside an <img>, a picture can neither run nor fetch anything.
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
