"""The files of an evaluation: numbers, plots and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from calibrate.pipeline.study import PolicyStudy
from calibrate.report.page import write_report
from calibrate.report.plots import draw_plots
from calibrate.report.reproducibility import read_prices
from ctd_guardrail.config.experts import ExpertConfig
from ctd_guardrail.errors import ConfigError
from ctd_guardrail.runtime.files import write_whole

__all__ = ["STUDY_FILE", "TEXTS_FILE", "write_study"]

STUDY_FILE: Final = "study.json"
TEXTS_FILE: Final = "failures.jsonl"


def write_study(
    result: PolicyStudy,
    folder: Path,
    *,
    policy_folder: Path,
    expert: ExpertConfig | None = None,
    show_text: bool = False,
) -> Path:
    """Write study.json, a CSV file for each table, an SVG file for each plot, and the report; return its path.

    Args:
        result: The study.
        folder: Created if it does not exist.
        policy_folder: Folder of the policy, for the report's configuration and the prices.
        expert: The expert that was asked; None if scores came with the data.
        show_text: Whether to write failures.jsonl, with the texts of the failure cases, as well.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    plots = list(draw_plots(result.study))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(result.to_dict(), indent=1, allow_nan=False)
        write_whole(folder / STUDY_FILE, f"{content}\n".encode())
        for table in result.study.tables.values():
            write_whole(folder / f"{table.name}.csv", table.to_csv().encode())
        for plot in plots:
            write_whole(folder / f"{plot.name}.svg", plot.svg.encode())
        if show_text:
            write_whole(folder / TEXTS_FILE, _texts(result).encode())
        return write_report(
            folder,
            result.policy,
            result.rows,
            prices=read_prices(policy_folder),
            expert=expert,
            policy_folder=policy_folder,
            plots=plots,
            refused=result.judged.refused,
        )
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written to ({error.strerror})", key="--to", hint="Name another folder"
        ) from error


def _texts(result: PolicyStudy) -> str:
    """Return the failure cases with their texts as JSON lines."""
    names = result.rows.name or []
    row_of_name = dict(zip(names, result.judged.rows.tolist(), strict=True))
    lines = []
    for record in result.study.tables["failures"].rows:
        text = result.dataset.conversations[row_of_name[record["row"]]].plain_text()
        lines.append(json.dumps({**record, "text": text}, ensure_ascii=False, allow_nan=False) + "\n")
    return "".join(lines)
