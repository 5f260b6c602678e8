"""Other implementations that give the same activations, as they are usually written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from transformers import AutoModel, AutoModelForCausalLM

from benchmarks.activations.base_models import BaseModel
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.packing import Packing

__all__ = ["bare", "naive", "sentence_transformer", "sorted_and_padded"]

Window = tuple[int, ...]
_BUDGET: Final = 2048
_NAIVE_BATCH: Final = 16


@torch.inference_mode()
def bare(source: HuggingFaceSource, windows: Sequence[Window]) -> None:
    """Run the module of a source on packed rows and discard the output: a lower bound of the work."""
    module: Any = source.module
    options = {} if module.config.model_type == "bert" else {"use_cache": False}
    for pack in _budgeted(windows, lambda group: sum(map(len, group))):
        packing = Packing(tuple(map(len, pack)))
        ids = torch.tensor([[token for window in pack for token in window]])
        places = packing.position_ids()
        module(input_ids=ids.to(module.device), position_ids=places.to(module.device), packing=packing, **options)


def sorted_and_padded(base: BaseModel, blocks: int) -> Callable[[Sequence[Window]], None]:
    """Return a function that runs the lower blocks on windows sorted by length, padded on the right, with a mask."""
    model = AutoModel.from_pretrained(base.path, num_hidden_layers=blocks).eval().to(base.device)

    @torch.inference_mode()
    def run(windows: Sequence[Window]) -> None:
        for group in _budgeted(sorted(windows, key=len), lambda group: len(group) * max(map(len, group))):
            model(**_padded(group, base.device))

    return run


def naive(base: BaseModel) -> Callable[[Sequence[Window]], None]:
    """Return a function that runs the whole model with its head, all hidden states, 16 windows in order of arrival."""
    kind = AutoModel if base.name == "MiniLM" else AutoModelForCausalLM  # MiniLM has no head
    model = kind.from_pretrained(base.path).eval().to(base.device)

    @torch.inference_mode()
    def run(windows: Sequence[Window]) -> None:
        for start in range(0, len(windows), _NAIVE_BATCH):
            padded = _padded(windows[start : start + _NAIVE_BATCH], base.device)
            states = model(**padded, output_hidden_states=True).hidden_states[base.depth // 2]
            mask = padded["attention_mask"][..., None]
            _ = (states * mask).sum(1) / mask.sum(1)

    return run


def sentence_transformer(base: BaseModel) -> Callable[[list[str]], object]:
    """Return ``encode`` of sentence-transformers on the whole model, mean-pooled.

    Raises:
        ImportError: sentence-transformers is not installed.
    """
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415  # only for this comparison
    from sentence_transformers.models import Pooling, Transformer  # noqa: PLC0415

    words = Transformer(base.path, max_seq_length=512)
    pooling = Pooling(words.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[words, pooling], device=base.device)
    return lambda texts: model.encode(texts, show_progress_bar=False)


def _padded(windows: Sequence[Window], device: str) -> dict[str, torch.Tensor]:
    width = max(map(len, windows))
    return {
        "input_ids": torch.tensor([[*each, *[0] * (width - len(each))] for each in windows], device=device),
        "attention_mask": torch.tensor(
            [[1] * len(each) + [0] * (width - len(each)) for each in windows], device=device
        ),
    }


def _budgeted(windows: Sequence[Window], cost: Callable[[Sequence[Window]], int]) -> Iterator[list[Window]]:
    group: list[Window] = []
    for window in windows:
        if group and cost([*group, window]) > _BUDGET:
            yield group
            group = []
        group.append(window)
    yield group
