"""The base model of a calibration: in this process, on a cluster, or as hidden states that vLLM has written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.progress import Progress

from calibrate.compute.ray import RayWorkers
from calibrate.compute.workers import InProcess, Workers
from calibrate.config.file import CalibrateConfig
from calibrate.features.hidden_states import HiddenStateFiles, HiddenStatesSource, check_rows, scan_files
from calibrate.rows.data import Dataset
from ctd_guardrail._typing import IntArray
from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.activations.huggingface import HuggingFaceSource, open_tokenizer
from ctd_guardrail.activations.python import open_base_model
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.runtime.factory import Factory

__all__ = ["open_hidden_states", "open_model", "open_workers"]


def open_hidden_states(
    config: CalibrateConfig, progress: Progress, needed: Iterable[tuple[Dataset, IntArray]]
) -> HiddenStateFiles | None:
    """Return the hidden states that vLLM has written, or None if the base model reads the rows.

    Args:
        config: The content of CALIBRATE.yml.
        progress: Progress bars.
        needed: Data sets and the indices of their rows that the files must hold.

    Raises:
        DataError: A file is damaged, or no file holds a window of a row.
    """
    if config.hidden_states is None:
        return None
    layers = config.hidden_states.layers or config.base.layers
    files = scan_files(config.hidden_states.path, layers, progress=progress)
    tokenizer = open_tokenizer(config.base.spec)
    for dataset, rows in needed:
        check_rows(dataset, rows, tokenizer, files, progress=progress)
    return files


def open_model(config: CalibrateConfig, spec: ActivationSpec, files: HiddenStateFiles | None) -> BatchedBaseModel:
    """Return the base model; if vLLM has run it, a base model that reads the files."""
    if files is None:
        return open_base_model(spec, _source(config), device=config.base.device)
    return BatchedBaseModel(HiddenStatesSource(HuggingFaceSource(spec, device=config.base.device), files))


def open_workers(config: CalibrateConfig, base_model: BatchedBaseModel) -> Workers:
    """Return the workers that run the base model: this process, or actors on a cluster."""
    if config.run_on is None:
        return InProcess(base_model)
    return RayWorkers(config.run_on, base_model, device=config.base.device, source=_source(config))


def _source(config: CalibrateConfig) -> Factory | None:
    return None if config.source is None else Factory(*config.source.call_in(Path()))
