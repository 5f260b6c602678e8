"""The threats and faults of docs/reliability.md, each with the number of trials that a full run makes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the page.

    Attributes:
        key: Name by which tests record it.
        threat: The threat or fault.
        holds: What must hold in every trial.
        trials: Trials of a full run.
    """

    key: str
    threat: str
    holds: str
    trials: int


ROWS = (
    Row(
        "verdict_parser",
        "The expert answers with anything at all",
        "no random completion is read as safe unless it is the agreed form and says so",
        10_000,
    ),
    Row(
        "killed_calibration",
        "A calibration is killed (`kill -9`) at a random moment",
        "readers see the old policy or the new one, whole; the next run goes on and pays for no saved score again",
        50,
    ),
    Row(
        "hostile_artefact",
        "A policy folder from a stranger: pickle, .pt, zip bomb, ../, links, 4 GB header, overlaps, NaN, wrong hash",
        "refused, nothing in it runs, and memory grows by less than 64 MiB",
        30,
    ),
    Row(
        "policy_mismatch",
        "Deployment differs from calibration: model, revision, tokenizer, chat template, layer, pooling, dtype, "
        "window, normaliser, probe, expert, expert's prompt",
        "the rail refuses to start",
        12,
    ),
)
