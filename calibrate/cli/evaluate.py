"""``ctd-calibrate evaluate``: every figure of a policy, on any labelled data and with any expert."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from calibrate import study
from calibrate.cli.refused import AskRefusedAgain
from ctd_guardrail.cli.console import exit_on_error

if TYPE_CHECKING:
    from calibrate.pipeline.study import PolicyStudy

__all__ = ["evaluate"]

_FIGURES: Final = ("auroc", "accuracy", "brier", "missed_harm")
_METHODS: Final = ("probe", "random", "uncertainty", "ctd", "oracle", "expert")


def evaluate(
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="Policy folder.")],
    *,
    data: Annotated[list[Path], typer.Option(metavar="FILE", help="Labelled rows, JSON lines; may be repeated.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder for all files that are written.")],
    expert_column: Annotated[
        str | None,
        typer.Option(metavar="C", help="Field with recorded expert scores; by default that of the calibration."),
    ] = None,
    expert_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file with an `expert` section: the expert to ask.")
    ] = None,
    source_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file with a `source` section: code of your own.")
    ] = None,
    device: Annotated[str, typer.Option(help="`auto`, `cpu`, or a torch device.")] = "auto",
    cache: Annotated[Path, typer.Option(metavar="DIR", help="Folder of saved expert scores.")] = Path(".ctd-cache"),
    ask_refused_again: AskRefusedAgain = False,
    show_text: Annotated[bool, typer.Option("--show-text", help="Write the texts of failure cases too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Measure a policy on rows that it was not made from, and draw every figure.

    Rows that the policy was trained or calibrated on are left out, and so are rows that depend on them. Given the
    calibration's own files, it measures the test rows.

    Writes study.json, a CSV file for each table, an SVG file for each plot, and report.html.

    [bold]$ ctd-calibrate evaluate ./policy --data prompts.jsonl --to ./evaluation[/bold]

    Exit status: 0 done, 2 bad input.
    """
    with exit_on_error():
        result = study(
            policy,
            data,
            to=to,
            expert_column=expert_column,
            expert_config=expert_config,
            source_config=source_config,
            cache=cache,
            device=device,
            ask_refused_again=ask_refused_again,
            show_text=show_text,
            console=Console(stderr=True),
        )
        from calibrate.report.page import REPORT_FILE  # noqa: PLC0415  # loaded by the study already

        report = to / REPORT_FILE
    if as_json:
        typer.echo(json.dumps({"report": str(report), **result.to_dict()}, allow_nan=False))
    else:
        _print_summary(result, report, Console())


def _print_summary(result: PolicyStudy, report: Path, console: Console) -> None:
    figures = result.study
    table = Table(title=f"At alpha = {figures.alpha:g}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("method")
    for name in ("rate", "AUROC", "accuracy", "Brier", "missed"):
        table.add_column(name, justify="right")
    cascade = figures.tables["cascade"]
    for method in _METHODS:
        for row in cascade.where(method=method, alpha=figures.alpha):
            cells = (_with_error(row[figure], row[f"{figure}_se"]) for figure in _FIGURES)
            table.add_row(method, f"{row['rate']:.3f}", *cells)
    console.print(table)
    (faic,) = figures.tables["faic"].where(figure="auroc", method="ctd")
    share = _with_error(faic["share"], faic["share_se"])
    console.print(
        f"{figures.rows:,} rows, {figures.unsafe / figures.rows:.1%} unsafe; left out: {result.judged.used:,} that the "
        f"policy was made from, {result.judged.dependent:,} that depend on others, "
        f"{len(result.judged.refused):,} that the expert refused, {result.judged.unusable:,} without a label or not "
        f"readable. FAIC {share}. "
        f"Expert: {result.expert}.",
        highlight=False,
        markup=False,
    )
    console.print(result.calls.describe(), highlight=False, markup=False)
    console.print(f"Report: {report}", highlight=False, markup=False, soft_wrap=True)


def _with_error(value: float | None, error: float | None) -> str:
    """Return ``.812 ±.014``: five columns and a name fit into 80 characters."""
    if value is None:
        return "-"
    return _short(value) if error is None else f"{_short(value)} ±{_short(error)}"


def _short(number: float) -> str:
    return f"{number:.3f}".replace("0.", ".", 1) if abs(number) < 1 else f"{number:.3f}"
