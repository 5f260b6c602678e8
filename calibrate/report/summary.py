"""The result of a run as tables on the terminal and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from calibrate.evaluate.grid import ALPHAS
from calibrate.evaluate.methods import METHODS
from calibrate.pipeline.run import PipelineResult
from calibrate.rows.splits import Split

__all__ = ["print_summary", "to_json"]


def to_json(result: PipelineResult) -> dict[str, Any]:
    """Return the result as one JSON-able object: the budget, the split and the evaluation."""
    certificate, split = result.certificate, result.split
    return {
        "policy": str(result.output),
        "budget": {
            "alpha": certificate.alpha,
            "delta": certificate.delta,
            "threshold": certificate.threshold,
            "k": certificate.k,
            "n": certificate.n,
            "mean_rate": certificate.mean_rate,
            **result.calls.to_dict(),
        },
        "split": {
            "train": split.train.size,
            "calibration": split.calibration.size,
            "test": split.test.size,
            "left_out": split.left_out,
            "test_left_out": split.test_left_out,
            "refused": result.refused,
            "unlabelled": dict(split.unlabelled),
            "unreadable": dict(split.unreadable),
        },
        "probes": _probes(result),
        "expert": {
            "identity": result.policy.manifest.expert,
            "asked": result.expert.asked,
            "asked_again": result.expert.asked_again,
            "refused": [each.to_dict() for each in result.expert.refused],
        },
        "evaluation": result.policy.manifest.evaluation,
    }


def print_summary(result: PipelineResult, console: Console, *, report: Path) -> None:
    """Print rows, evaluation and budget, and the paths of policy and report."""
    console.print(_rows_table(result))
    if result.policy.manifest.training["alternatives"]:
        console.print(_candidates_table(result))
    for title, figure in (("AUROC", "auroc"), ("Accuracy", "accuracy"), ("Share sent to the expert", "rate")):
        console.print(_cascade_table(result, title, figure))
    console.print(result.calls.describe(), highlight=False)
    performance = result.policy.manifest.performance
    if performance is not None:
        risks = ", ".join(f"{risk.metric} at most {risk.max:g}" for risk in performance.risks)
        console.print(
            f"Certified with it: {risks}, at lambda = {performance.threshold}, "
            f"tau = {result.policy.manifest.decision_threshold:g}, abstain band {performance.band:g}.",
            highlight=False,
        )
        if result.few_labels is not None:
            labelled, rows = result.few_labels
            console.print(
                f"The risks rest on {labelled:,} labels of {rows:,} calibration rows and the expert's scores of all.",
                highlight=False,
            )
    probes = _probes(result)
    console.print(
        f"Probes: {' + '.join(probes['kinds'])} over tokens, layers "
        f"{', '.join(map(str, probes['layers']))}; merge: {probes['merge']}.",
        highlight=False,
    )
    for name, path in (("Policy", result.output), ("Report", report)):
        console.print(f"{name}: {path}", highlight=False, markup=False, soft_wrap=True)


def _probes(result: PipelineResult) -> dict[str, Any]:
    manifest = result.policy.manifest
    return {
        "layers": list(manifest.activations.layers),
        "kinds": list(dict.fromkeys(component.reduction for component in manifest.probe.components)),
        "merge": manifest.merge.kind,
    }


def _rows_table(result: PipelineResult) -> Table:
    table = Table(title="Rows", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("use")
    table.add_column("rows", justify="right")
    table.add_column("remark")
    split, safety_left_out = result.split, result.safety_left_out
    remarks = {part: _join(_refused(result, part), _unused(split, part)) for part in result.refused}
    table.add_row("train", f"{split.train.size:,}", _join(_expert_remark(result), remarks["train"]))
    if result.safety_rows:
        remark = f"{safety_left_out:,} left out: they depend on rows of the other files" if safety_left_out else ""
        table.add_row("safety probe", f"{result.safety_rows:,}", remark)
    table.add_row(
        "calibration", f"{split.calibration.size:,}", _join(_left_out(split.left_out), remarks["calibration"])
    )
    unsafe = f"{result.grid.rows.label.mean():.1%} unsafe"
    table.add_row("test", f"{split.test.size:,}", _join(unsafe, _left_out(split.test_left_out), remarks["test"]))
    return table


def _candidates_table(result: PipelineResult) -> Table:
    """Return the candidates that the probes were chosen from, the chosen one in bold."""
    training = result.policy.manifest.training
    table = Table(title="Probes to choose from", title_justify="left", box=SIMPLE_HEAD)
    for column in ("layers", "kinds"):
        table.add_column(column)
    sets = list(training["alternatives"][0]["sets"])
    for column in ("Brier", *sets):
        table.add_column(column, justify="right")
    for each in training["alternatives"]:
        briers = [each["brier"], *(each["sets"][name]["brier"] for name in sets)]
        is_chosen = (each["layers"], each["kinds"]) == (training["layers"], training["kinds"])
        table.add_row(
            "+".join(map(str, each["layers"])),
            "+".join(each["kinds"]),
            *[f"{brier:.4f}" for brier in briers],
            style="bold" if is_chosen else "",
        )
    return table


def _join(*remarks: str) -> str:
    return "; ".join(filter(None, remarks))


def _refused(result: PipelineResult, part: str) -> str:
    """Return the remark about refused rows of one part."""
    rows = result.refused[part]
    use = "they count in the budget alone" if part == "calibration" else "nothing uses them"
    return f"the expert refused {rows:,}: {use}" if rows else ""


def _unused(split: Split, part: str) -> str:
    """Return the remark about rows without a label and rows that the base model cannot read."""
    use = "they count in the budget alone" if part == "calibration" else "left out"
    counts = (split.unlabelled.get(part, 0), "without a label"), (split.unreadable.get(part, 0), "cannot be read")
    return _join(*(f"{rows:,} {state}: {use}" for rows, state in counts if rows))


def _left_out(rows: int) -> str:
    return f"{rows:,} left out: one row counts of each cluster" if rows else ""


def _expert_remark(result: PipelineResult) -> str:
    asked, tokens = result.expert.asked, result.expert.tokens
    billed = "" if tokens is None else f", {tokens:,} tokens"
    again = result.expert.asked_again
    twice = f"; {again:,} of them were under way when a run was killed: asked again" if again else ""
    return f"expert {result.policy.manifest.expert}" + (f": {asked:,} scores asked for{billed}{twice}" if asked else "")


def _cascade_table(result: PipelineResult, title: str, figure: str) -> Table:
    """Return one figure of every method at every budget, the configured budget in bold."""
    grid = result.grid
    table = Table(title=f"{title}, {grid.rows.label.size:,} test rows", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("alpha", justify="right")
    for method in METHODS:
        table.add_column(method, justify="right")
    for alpha in sorted({*ALPHAS, result.share}):
        values = [grid.cell(method, alpha).figures[figure].value for method in METHODS]
        style = "bold" if alpha == result.share else ""
        table.add_row(f"{alpha:g}", *[f"{value:.3f}" for value in values], style=style)
    return table
