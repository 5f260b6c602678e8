"""Tiny base models of every supported family, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2Model,
    Gemma3TextConfig,
    Gemma3TextModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
    Phi3Config,
    Phi3Model,
    PhiConfig,
    PhiModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    StableLmConfig,
    StableLmModel,
)

_SHAPE: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 256, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}
_SIZED = {**_GROUPED, "head_dim": 8}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

_MODELS: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: Qwen2Model(Qwen2Config(**_GROUPED)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**_SIZED)),
    "gemma2": lambda: Gemma2Model(
        Gemma2Config(**_SIZED, sliding_window=16, layer_types=_SLIDING, attn_logit_softcapping=2.0)
    ),
    "gemma3": lambda: Gemma3TextModel(Gemma3TextConfig(**_SIZED, sliding_window=16, layer_types=_SLIDING)),
    "mistral": lambda: MistralModel(MistralConfig(**_SIZED, sliding_window=16)),
    "phi": lambda: PhiModel(PhiConfig(**_SHAPE)),
    "phi3": lambda: Phi3Model(Phi3Config(**_GROUPED, sliding_window=16)),
    # Not among those that are packed.
    "stablelm": lambda: StableLmModel(StableLmConfig(**_GROUPED)),
    "modernbert": lambda: ModernBertModel(
        ModernBertConfig(**_SHAPE, local_attention=16, cls_token_id=1, sep_token_id=2, initializer_cutoff_factor=2.0)
    ),
}


@pytest.fixture(scope="session")
def base_model(tiny_bert: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model: BERT has 2 layers, the others 3; all are 32 wide."""
    folders = {"bert": tiny_bert, "llama": tiny_llama}

    def make(family: str) -> Path:
        if family not in folders:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            _MODELS[family]().save_pretrained(folder)
            AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
            folders[family] = folder
        return folders[family]

    return make
