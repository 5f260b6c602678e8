"""The documents beside every calibrated policy: report, model card, and record of reproducibility."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calibrate.config.file import CalibrateConfig
from calibrate.pipeline.run import PipelineResult
from calibrate.report.card import write_card
from calibrate.report.page import explore_policy, write_report
from calibrate.report.reproducibility import write_reproducibility
from ctd_guardrail.errors import PolicyIntegrityError
from ctd_guardrail.policy.store import MANIFEST_FILE, read_policy
from ctd_guardrail.runtime.lock import writing

__all__ = ["write_documents"]


def write_documents(result: PipelineResult, config: CalibrateConfig, *, command: Sequence[str] | None = None) -> Path:
    """Write every document into the policy's folder and return the path of the report.

    Args:
        result: Result of the run.
        config: Configuration of the run.
        command: The command line of the run; None if it was called from Python.

    Raises:
        PolicyError: Another process writes the folder, or has replaced the policy since the run.
    """
    folder, policy, rows = result.output, result.policy, result.grid.rows
    explorer = explore_policy(policy, rows, config.prices)
    with writing(folder):
        there = read_policy(folder).manifest
        if (there.tensors_sha256, there.pins_sha256) != (policy.manifest.tensors_sha256, policy.manifest.pins_sha256):
            raise PolicyIntegrityError(
                f"{folder / MANIFEST_FILE} was replaced by another process, so the report would not match it",
                hint="Run the calibration again, which continues from the saved results, or write to another folder",
            )
        write_card(folder, policy, rows, explorer)
        write_reproducibility(folder, policy.manifest, config, command=command)
        return write_report(
            folder,
            policy,
            rows,
            prices=config.prices,
            expert=config.expert,
            explorer=explorer,
            refused=result.expert.refused,
        )
