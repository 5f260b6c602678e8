"""Policies on tiny decoders with random weights, and their exports."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.policy.store import CalibrationScores, Policy, write_policy
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.spec import Component, ProbeSpec
from ctd_guardrail.probes.windows import over_windows
from ctd_guardrail.serving.export import export_policy
from ctd_guardrail.text.conversation import Conversation

_SHAPE: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 256, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_SHAPE, sliding_window=16)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_SHAPE, head_dim=8)),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**_SHAPE, head_dim=8, sliding_window=16, layer_types=_SLIDING)
    ),
}

PLUG_IN = ("p", "eta", "e1", "e0")
# One of each kind: all of them are reductions of the columns that the engine gives.
MIXED = ProbeSpec(
    components=(
        Component(outputs=PLUG_IN),
        Component(reduction="attention", outputs=("e1", "p"), heads=3),
        Component(reduction="multimax", outputs=("p",), heads=2),
        Component(reduction="ema", outputs=("eta", "e0")),
        Component(reduction="rolling", outputs=PLUG_IN, span=5),
    ),
)


# Of one window and of several.
_TEXTS = ("a", "how are you", "one two three", "longer words " * 12)


def scores_of(engine: BatchedBaseModel, probe: ProbeSpec, tensors: dict[str, Any]) -> Any:
    conversations = [Conversation.from_text(f"{text} {number}") for text in _TEXTS for number in range(8)]
    return np.stack([over_windows(rows) for rows in engine.run_many(conversations, Probes(probe, tensors))])


@pytest.fixture(scope="session")
def decoder(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a causal language model: 4 layers, width 32, 256 positions."""

    @cache
    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        FAMILIES[family]().save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def make_policy(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Policy]]:
    """Write a policy with random probes on a base model."""

    def make(model: Path, *, probe: ProbeSpec = MIXED, **spec: Any) -> tuple[Path, Policy]:
        activations = ActivationSpec.model_validate({"model": str(model), "layers": (2,), "window": 64} | spec)
        engine = BatchedBaseModel(HuggingFaceSource(activations, device="cpu"))
        rng, n, width = np.random.default_rng(0), 200, engine.width
        normal = {name: rng.normal(size=shape) / np.sqrt(width) for name, shape in probe.shapes(width).items()}
        tensors = {name: x.astype(np.float32) for name, x in normal.items()}
        # Of all verdicts and routes there shall be some.
        rows = scores_of(engine, probe, tensors)
        p = rows[:, 0].clip(1e-6, 1 - 1e-6)
        tensors["bias"][0] -= np.median(np.log(p / (1 - p)))
        rows = scores_of(engine, probe, tensors)
        engine.close()
        d = np.quantile(rows[:, 1].astype(np.float64), np.linspace(0, 1, n))
        folder = tmp_path_factory.mktemp("policy")
        policy = write_policy(
            folder,
            {
                "created_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
                "versions": {},
                "activations": activations,
                "fingerprint": engine.fingerprint,
                "probe": probe,
                "expert": "recorded:expert",
                "calibration": {"rows": n, "alpha": 0.4, "delta": 0.1, "seed": 0},
                "data": [],
                "training": {},
                "evaluation": {},
            },
            tensors,
            CalibrationScores.from_rows(d=d, p=np.linspace(0, 1, n)),
        )
        return folder, policy

    return make


@pytest.fixture(scope="session")
def exported(
    decoder: Callable[[str], Path], make_policy: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Policy, Path]]:
    """Make a policy and its export; return the policy's folder, the policy, and the export's folder."""

    @cache
    def make(family: str = "llama", dtype: str = "float32") -> tuple[Path, Policy, Path]:
        folder, policy = make_policy(decoder(family), dtype=dtype)
        out = tmp_path_factory.mktemp("export") / "out"
        export_policy(policy, out, device="cpu")
        return folder, policy, out

    return make
