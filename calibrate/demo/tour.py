"""The demonstration: data, expert, calibration, and unseen messages through NeMo Guardrails."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from calibrate import calibrate
from calibrate.compute.progress import progress_bars
from calibrate.config.file import load_config
from calibrate.demo.expert import train_expert
from calibrate.demo.prompts import write_dataset
from calibrate.pipeline.run import PipelineResult
from calibrate.report.page import REPORT_FILE
from calibrate.report.summary import print_summary
from ctd_guardrail.activations.base_model import load_base_model
from ctd_guardrail.decision import Reason, Route, Verdict
from ctd_guardrail.experts.build import build_expert
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.windows import over_windows
from ctd_guardrail.text.conversation import Conversation

if TYPE_CHECKING:
    from nemoguardrails.types import LLMResponse, LLMResponseChunk

__all__ = ["tour"]

_TEMPLATES: Final = ("CALIBRATE.yml", "rails/config.yml")
_ROWS_SHOWN: Final = 16


@dataclass(frozen=True, slots=True)
class _Screened:
    """One unseen message after its way through NeMo Guardrails."""

    text: str
    group: str
    is_unsafe: bool
    route: Route
    reason: Reason
    verdict: Verdict
    latency_ms: float


def tour(folder: Path, *, console: Console) -> None:
    """Run the demonstration in a folder. A second run reuses the files of the first.

    Args:
        folder: Created if it does not exist. Edited files in it are kept.
        console: Where the demonstration is shown.

    Raises:
        CtdError: An edited file in the folder is not valid.
    """
    _copy_templates(folder)
    console.rule("[bold]1. Data[/]")
    data = write_dataset(folder / "data")
    console.print(f"Harmless and harmful prompts from this package, with look-alikes of both: {folder / 'data'}")

    console.rule("[bold]2. Expert[/]")
    if (folder / "expert" / "config.json").exists():
        console.print(f"A fine-tuned classifier, trained in an earlier run: {folder / 'expert'}")
    else:
        report = train_expert(data.expert, folder / "expert")
        console.print(f"A classifier fine-tuned on its own prompts: {folder / 'expert'} ({report})")

    console.rule("[bold]3. Calibration[/]")
    result = calibrate(folder / "CALIBRATE.yml", console=console)
    page = result.output / REPORT_FILE
    print_summary(result, console, report=page)

    console.rule("[bold]4. Unseen messages through NeMo Guardrails[/]")
    rows = [json.loads(line) for line in data.unseen.read_text(encoding="utf-8").splitlines()]
    screened = asyncio.run(_screen(folder / "rails", rows, console))
    _print_messages(screened, console)
    _print_outcome(folder, rows, screened, result, console)
    _print_next_steps(folder, page, console)


def _copy_templates(folder: Path) -> None:
    with as_file(files("calibrate.demo") / "templates") as templates:
        for name in _TEMPLATES:
            target = folder / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(templates / name, target)


class _StandInLLM:
    """Replaces the main LLM: the demonstration only shows whether a message reaches it."""

    model_name = "stand-in"
    provider_name = None
    provider_url = None

    async def generate_async(self, prompt: Any, *, stop: Any = None, **_: Any) -> LLMResponse:
        del prompt, stop
        from nemoguardrails.types import LLMResponse  # noqa: PLC0415  # see _screen

        return LLMResponse(content="(the main LLM would answer here)")

    async def stream_async(self, prompt: Any, *, stop: Any = None, **_: Any) -> AsyncIterator[LLMResponseChunk]:
        del prompt, stop
        from nemoguardrails.types import LLMResponseChunk  # noqa: PLC0415  # see _screen

        yield LLMResponseChunk(delta_content="(the main LLM would answer here)")


async def _screen(rails: Path, rows: Sequence[dict[str, Any]], console: Console) -> list[_Screened]:
    # NeMo reads both when it is imported. site-packages is on its import path, a checkout is not.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ["COLANGPATH"] = os.pathsep.join(filter(None, [_package_root(), os.environ.get("COLANGPATH", "")]))
    from nemoguardrails import LLMRails, RailsConfig  # noqa: PLC0415

    with console.status("Starting NeMo Guardrails"):
        app = LLMRails(RailsConfig.from_path(str(rails)), llm=_StandInLLM())
    screened = []
    with progress_bars(console) as progress:
        for row in progress.track(rows, description="messages"):
            messages = row.get("messages") or [{"role": "user", "content": row["text"]}]
            start = perf_counter()
            response: Any = await app.generate_async(messages=messages, options={"log": {"activated_rails": True}})
            elapsed = 1000 * (perf_counter() - start)
            outcome = next(
                action.return_value
                for rail in response.log.activated_rails
                for action in rail.executed_actions
                if action.action_name == "ctd_check_input"
            )
            screened.append(
                _Screened(
                    text=" ".join(messages[-1]["content"].split()),
                    group=row["group"],
                    is_unsafe=bool(row["label"]),
                    route=Route(outcome.metadata["route"]),
                    reason=Reason(outcome.metadata["reason"]),
                    verdict=Verdict.BLOCK if outcome.is_blocked else Verdict.ALLOW,
                    latency_ms=elapsed,
                )
            )
    return screened


def _package_root() -> str:
    return str(Path(str(files("ctd_guardrail"))).parent)


def _print_messages(screened: Sequence[_Screened], console: Console) -> None:
    """Show some messages, delegated ones among them."""
    delegated = [item for item in screened if item.route is Route.EXPERT]
    decided = [item for item in screened if item.route is Route.PROBE]
    shown = [*decided[: _ROWS_SHOWN - min(len(delegated), _ROWS_SHOWN // 2)], *delegated[: _ROWS_SHOWN // 2]]
    table = Table(title=f"{len(shown)} of {len(screened)} messages", title_justify="left", expand=True)
    table.add_column("message", ratio=1, no_wrap=True, overflow="ellipsis")
    for name, width in (("route", 6), ("verdict", 7), ("truth", 8)):
        table.add_column(name, width=width, no_wrap=True)
    table.add_column("ms", justify="right", width=4, no_wrap=True)
    for item in shown:
        is_right = (item.verdict is Verdict.BLOCK) == item.is_unsafe
        table.add_row(
            Text(item.text),
            Text(item.route, style="cyan" if item.route is Route.EXPERT else ""),
            Text(f"{item.verdict} {'✓' if is_right else '✗'}", style="green" if is_right else "red"),
            "harmful" if item.is_unsafe else "harmless",
            f"{item.latency_ms:.0f}",
        )
    console.print(table)


def _print_outcome(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    screened: Sequence[_Screened],
    result: PipelineResult,
    console: Console,
) -> None:
    conversations = [
        Conversation.from_messages(row.get("messages") or [{"role": "user", "content": row["text"]}]) for row in rows
    ]
    labels = np.array([item.is_unsafe for item in screened])
    manifest = result.policy.manifest
    windows = load_base_model(manifest.activations).run_many(conversations, Probes(manifest.probe, result.policy.probe))
    p = np.array([over_windows(scores)[0] for scores in windows])
    expert = asyncio.run(_ask_expert(folder, conversations))
    verdicts = np.array([item.verdict is Verdict.BLOCK for item in screened])
    delegated = np.array([item.route is Route.EXPERT for item in screened])

    table = Table(title=f"{len(rows)} unseen messages", title_justify="left")
    table.add_column("")
    table.add_column("accuracy", justify="right")
    table.add_column("harm missed", justify="right")
    table.add_column("expert calls", justify="right")
    for name, blocks, calls in (
        ("probe alone", p >= 0.5, 0),  # noqa: PLR2004  # the policy's default decision threshold
        ("cascade", verdicts, int(delegated.sum())),
        ("expert alone", expert >= 0.5, len(rows)),  # noqa: PLR2004
    ):
        missed = (~blocks[labels]).mean()
        table.add_row(name, f"{(blocks == labels).mean():.1%}", f"{missed:.1%}", f"{calls} ({calls / len(rows):.1%})")
    console.print(table)
    certificate = result.certificate
    console.print(
        f"Budget: alpha = {certificate.alpha:.0%}, certified with confidence {1 - certificate.delta:.0%} on inputs "
        f"like those of the calibration; {certificate.mean_rate:.1%} expected, {delegated.mean():.1%} seen here. "
        f"Median latency: {_median(screened, Route.PROBE)} by the probe, {_median(screened, Route.EXPERT)} with the "
        "expert, most of it NeMo Guardrails' own.",
    )


async def _ask_expert(folder: Path, conversations: Sequence[Conversation]) -> np.ndarray[Any, np.dtype[np.float64]]:
    config = load_config(folder / "CALIBRATE.yml")
    if config.expert is None:
        raise AssertionError("the demonstration's configuration names an expert")
    expert = build_expert(config.expert)
    try:
        scores = await asyncio.gather(*(expert.score(conversation) for conversation in conversations))
    finally:
        await expert.aclose()
    return np.array([score.p_unsafe for score in scores])


def _median(screened: Sequence[_Screened], route: Route) -> str:
    latencies = [item.latency_ms for item in screened if item.route is route]
    return f"{np.median(latencies):.0f} ms" if latencies else "none"


def _print_next_steps(folder: Path, page: Path, console: Console) -> None:
    calibrate_yml, config_yml = folder / "CALIBRATE.yml", folder / "rails" / "config.yml"
    console.print(
        Panel(
            f"[bold]Your model, data and expert[/]: edit base, data and expert in {calibrate_yml}, then\n"
            f"  ctd-calibrate run {calibrate_yml}\n"
            f"[bold]What the budget buys[/]: open {page} in a browser\n"
            f"[bold]Your budget[/]: change alpha and delta in {config_yml}; no recalibration is needed\n"
            f"  ctd-guardrail validate {folder / 'rails'}\n"
            f'  echo "How do I kill a Python process?" | ctd-guardrail check --config {folder / "rails"}\n'
            f"[bold]Your app[/]: copy import_paths, custom_data and rails from {config_yml} into your own config.yml",
            title="What to edit",
            title_align="left",
        )
    )
