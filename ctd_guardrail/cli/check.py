"""``ctd-guardrail check``: screen messages from a file or standard input."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ctd_guardrail.assembly.guard import Guard
from ctd_guardrail.assembly.prepared import load_guard
from ctd_guardrail.cli.console import exit_on_error
from ctd_guardrail.cli.inputs import InputFormat, InputRow, read_inputs
from ctd_guardrail.decision import Decision, Verdict
from ctd_guardrail.errors import DataError

__all__ = ["check"]


def check(
    config: Annotated[Path, typer.Option(metavar="DIR", help="NeMo Guardrails configuration folder.")],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="File of messages; by default standard input.")
    ] = None,
    form: Annotated[
        InputFormat,
        typer.Option(
            "--format", help="One message a line (text), or one JSON object a line with text or messages (jsonl)."
        ),
    ] = InputFormat.AUTO,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per input, and nothing else, on stdout.")
    ] = False,
    scores: Annotated[bool, typer.Option("--scores", help="Show p, d and the expert's score as well.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Inputs that are screened at the same time.")] = 1,
) -> None:
    """Screen messages, and show the verdict, route, reason and latency of each.

    Loads the base model and calls the expert, as in production. Each line is a conversation of its own.

    [dim]ctd-guardrail check --config config messages.txt[/]
    [dim]ctd-guardrail check --config config --json < messages.jsonl > decisions.jsonl[/]
    """
    with exit_on_error():
        screen = Console(stderr=as_json)
        with screen.status("Loading the base model"):
            guard = load_guard(config)
        report = _JsonReport(scores=scores) if as_json else _ScreenReport(Console(), scores=scores)
        with _open(file) as stream:
            rows = read_inputs(stream, form=form, file=file or "standard input")
            asyncio.run(_check_all(guard, rows, report, concurrency))
    _print_summary(screen, guard)


async def _check_all(
    guard: Guard, rows: Iterator[InputRow], report: _JsonReport | _ScreenReport, concurrency: int
) -> None:
    try:
        while batch := [row for _, row in zip(range(concurrency), rows, strict=False)]:
            decisions = await asyncio.gather(*(guard.check(row.messages) for row in batch))
            for row, decision in zip(batch, decisions, strict=True):
                report.add(row, decision)
    finally:
        await guard.aclose()


class _JsonReport:
    def __init__(self, *, scores: bool) -> None:
        self._scores = scores

    def add(self, row: InputRow, decision: Decision) -> None:
        fields: dict[str, object] = {
            "id": row.id,
            "verdict": decision.verdict.value,
            "route": decision.route.value,
            "reason": decision.reason.value,
            "latency_ms": round(decision.timings.total_ms, 3),
        }
        if self._scores:
            fields |= {"p": decision.p, "d": decision.d, "p_expert": decision.p_expert}
        sys.stdout.write(json.dumps(fields) + "\n")
        sys.stdout.flush()


class _ScreenReport:
    def __init__(self, console: Console, *, scores: bool) -> None:
        self._console = console
        self._scores = scores
        self._is_first = True

    def add(self, row: InputRow, decision: Decision) -> None:
        table = Table(box=None, show_header=self._is_first, pad_edge=False, expand=True)
        self._is_first = False
        table.add_column("verdict", width=7)
        table.add_column("route", width=6)
        table.add_column("reason", width=18)
        table.add_column("ms", width=8, justify="right")
        if self._scores:
            for name in ("p", "d", "expert"):
                table.add_column(name, width=6, justify="right")
        table.add_column("message", ratio=1, no_wrap=True, overflow="ellipsis")
        cells = [
            Text(decision.verdict, style="green" if decision.verdict is Verdict.ALLOW else "red"),
            Text(decision.route, style="cyan" if decision.route.value == "expert" else ""),
            Text(decision.reason, style="bold yellow" if decision.reason.is_failure else ""),
            Text(f"{decision.timings.total_ms:.1f}"),
        ]
        if self._scores:
            cells += [
                Text("" if score is None else f"{score:.3f}") for score in (decision.p, decision.d, decision.p_expert)
            ]
        table.add_row(*cells, Text(row.preview))
        self._console.print(table)


def _print_summary(console: Console, guard: Guard) -> None:
    counts = guard.tally.snapshot()
    share = counts.delegated / counts.total if counts.total else 0.0
    console.print(
        f"\n{counts.total} inputs, {counts.delegated} to the expert ({share:.1%}); "
        f"budget: {guard.plan.statement}, {guard.plan.expectation}",
        soft_wrap=True,
    )
    if counts.failures:
        console.print(
            f"[bold yellow]{counts.failures} inputs could not be judged; the failure policy decided about them[/]"
        )


@contextmanager
def _open(file: Path | None) -> Iterator[TextIO]:
    if file is None:
        yield sys.stdin
        return
    try:
        stream = file.open(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=file) from error
    with stream:
        try:
            yield stream
        except UnicodeDecodeError as error:
            raise DataError("is not UTF-8", file=file) from error
